"""What a study will cost, before anything runs: every number with what it rests on.

answers       what generating answers took, counted from the answers: steps of its batches, and tokens
assumptions   every assumed number with its unit and source; PLAN_ASSUME=name=value replaces one
budget        the part of a study that answers its question best within so many GPU-hours
calibrate     measure this machine with two tiny copies of the study: start and rate of every stage
command       `--plan`: calibrate where asked to, refuse what cannot fit, propose within a budget
costs         seconds of one process: what it has to do, on this machine or on an assumed GPU
devices       kinds of GPU: published peak figures, memory, links
disk          bytes on disk while a study runs
memory        does every stage fit on the GPUs? If not, what would
node          the machine that a plan is for
power         the smallest difference that a design can detect, from the variances of earlier studies
rates         rates of this machine: what was measured, where it lies and when it counts
search        which arms, seeds and prompts: the best choice within a budget
simulate      when each job of a study runs: the jobs' graph on cores and leased GPUs
times         what the processes of a study took
volumes       how many rows and tokens each part of a study reads, trains on and writes
"""
