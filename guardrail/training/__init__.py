"""Supervised fine-tuning on DeepSpeed with align-anything's flags; the entry point is ``guardrail.training.sft``.

batches            token tensors of a micro-batch, padded or packed, the attention that keeps packed rows ...
checkpoint         saving: weights as a plain Hugging Face folder
config             every option of the trainer: align-anything's ``sft.yaml`` keys and this project's own, ...
data               training rows as token ids: tokenised once, in parallel, cached by content
defences           defences: what may change while a model is fine-tuned, so that its guardrails last
engine             the DeepSpeed engine: distributed start-up, model, optimizer, schedule
install_template   put ``configs/template.py`` in the place of align-anything's, with a backup, or take it back
logs               what a training run reports while it runs: a line on stderr, a line in a file, Weights & ...
loop               the training loop and the evaluation loss: plans in, losses out
lora               low-rank adapters through peft, and the merge of a gathered state dict (any ZeRO stage)
steps              which rows make up which optimizer step, on which rank: one plan per epoch, the same on ...
"""
