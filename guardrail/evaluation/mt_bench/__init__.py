"""MT-Bench as FastChat defines it: 80 questions, two turns, both judged; and, under another name, the older measure.

data      questions, reference answers, judge prompts: FastChat's files, the hub's copy, or the sandbox's small set
prompts   this project's own judge prompts
answers   two-turn answers with temperatures by category; FastChat's ``model_answer`` file
judge     matches to judge, the judges, ratings, resumable judging; FastChat's ``model_judgment`` file
summary   scores overall, per turn and per category, with intervals and failures
figure    radar of the categories
stage     options, and one run from flags to files
"""
