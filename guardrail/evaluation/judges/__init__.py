"""Judging: completions in, one judgement per (id, sample) out, and a summary with intervals.

    answers      read results.json, the formatter's file, or plain question-answer files
    keywords     first-sentence refusals
    coherence    empty, looping, gibberish
    outcomes     refusal | harmful | safe | incoherent | empty, and the summary
    moderation   Beaver-Dam: 14 labels, windows
    guard        chat-model guard ("safe" / "unsafe S1")
    rubric       1-5 rating by a chat model behind an OpenAI-compatible server
    panel        several judges, their agreement, their disagreements
    stage        one file in, one judgement file out; reused when unchanged

``python -m guardrail.evaluation.judges results.json --judge beaver_dam`` runs any of them.
Importing this imports no torch.
"""
