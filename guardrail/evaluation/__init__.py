"""Section 4.3 of the paper: harmfulness, utility, MT-Bench, and two results compared.

attacks       attacks: what may be turned against a model when it is asked, with no training
benchmarks    benchmarks by name: MT-Bench (`guardrail.evaluation.mt_bench`) and any task of the lm- ...
checkpoint    every evaluation of one checkpoint from one load of the model: safety, over-refusal, utility, ...
compare       is the difference between two runs real?
completions   what every evaluation of a model's answers does alike: rows -> token ids -> completions -> one ...
exchange      what this project measures, in the forms of other tools: the same outcome per prompt, whoever ...
judges        judging: completions in, one judgement per (id, sample) out, and a summary with intervals
mt_bench      MT-Bench as FastChat defines it: 80 questions, two turns, both judged
probes        what is asked at the probes of a training, and where the answers lie
safety        answers to harmful and to harmless prompts, greedy, sampled, or over a sweep of decoding settings
trajectory    fine-tune, and see the guardrail wear off: answers to the safety prompts at probes along the training
"""
