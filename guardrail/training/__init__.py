"""Supervised fine-tuning on DeepSpeed with align-anything's flags; the entry point is ``guardrail.training.sft``.

batches            token tensors of a micro-batch, padded or packed, the attention that keeps packed rows ...
checkpoint         saving: weights as a plain Hugging Face folder
config             every option of the trainer: align-anything's ``sft.yaml`` keys and this project's own, ...
data               training rows as token ids: tokenised once, in parallel, cached by content
defences           defences: what may change while a model is fine-tuned, so that its guardrails last
engine             the DeepSpeed engine: distributed start-up, model, optimizer, schedule
foreign            run another project's SFT trainer in the place of ours, and record what it left
foreign_output     what a foreign trainer leaves behind, read: losses from its logs, the arguments it used, weights ...
install_template   put ``configs/template.py`` in the place of align-anything's, with a backup, or take it back
logs               what a training run reports while it runs: a line on stderr, a line in a file, Weights & ...
loop               the training loop and the evaluation loss: plans in, losses out
lora               low-rank adapters through peft, and the merge of a gathered state dict (any ZeRO stage)
observe            look at a model while it trains: at which steps, and without changing the training
steps              which rows make up which optimizer step, on which rank: one plan per epoch, the same on ...
token_cache        token ids of training rows, kept by the content of each row: runs that share rows tokenise ...
trainers           the SFT trainers that a run may have: ours, align-anything's, another module; what each can do
whole              a model that ZeRO 3 has spread over the ranks, in one piece on each of them for a while
"""
