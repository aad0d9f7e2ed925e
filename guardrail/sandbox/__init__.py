"""The sandbox: a fictional world as hub-layout data sets, and tiny models trained on it.

Hazards are invented substances, devices and deeds; no text in it could help anyone do harm.

    lexicon    words: categories, invented-name parts, verbs, benign things   (train and test apart)
    wordings   what is asked, dialogues                                       (train and test apart)
    replies    what is answered: compliance, refusals                         (train and test apart)
    world      seeded sampling of labelled conversations from the three
    tasks      benign tasks beyond lists and dialogues: another identity, a rigid format
    splits     the rows of every split
    writer     hub layout: parquet files, card, manifest; skipped when unchanged
    tokenizer  byte-level BPE
    training   one plain training loop for the tiny models
    exchange   sums over the ranks of one machine, through memory that they share
    moderation the Beaver-Dam-shaped text format, training pairs and measured agreement
    controls   worlds with a known answer: what an instrument should find, and what not
    models     which model is trained from what, two processes, atomic folders
    customer   a customer's file with planted rows, to practise the gate on

Importing this package imports neither torch nor transformers.

    mt_bench    two-turn questions in FastChat's file format, so that the MT-Bench entry point has something to ...
    optimizer   muon for the hidden matrices of the tiny models: about a third fewer steps than AdamW for the ...
    worker      train sandbox models in this process, as one of the ranks that ``train_models.py`` starts side by ...
"""
