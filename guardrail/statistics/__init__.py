"""All inference of the project; nothing else computes an interval or a p-value.

agreement    agreement of raters beyond chance: Cohen's kappa, Krippendorff's alpha
conformal    prediction intervals and p-values for a new group: a task, a pool or a study
crossed      intervals and tests for a crossed design: every training seed is evaluated on the same prompts
dose         harmfulness over the dose of harmful rows: a fitted curve, and the dose at which half of the prompts fall
equivalence  is a difference so small that it does not matter?
rates        rates with their intervals
regression   which property of an alignment subset goes with durability?
resampling   bootstrap intervals and permutation tests
survival     how long a guardrail lasts: survival of prompts along a fine-tuning, from answers judged at a few probes
testing      many tests at once, and what a test can find: corrected p-values, detectable differences, seeds ...
"""
