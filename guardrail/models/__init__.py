"""Loading and checking checkpoints and tokenizers; memory.

adapters          a folder with a low-rank adapter as a checkpoint: weights of its base plus ``alpha / r * B A``, ...
blocks            the transformer blocks of a model, whatever the family calls their list
fetch             a hub name as a folder on this machine, so that everything that is checked in a folder is ...
import_structure  what transformers' models export, remembered: at every start it reads all of its ...
imports           transformers without what a single CPU process never uses: about half of its start-up time
labelled_logits   logits at chosen tokens only
last_block        less work in the last transformer block: its feed-forward part only at the positions that are read
linear            torch's own ``F.linear`` in a process in which ZeRO 3 has been used
loading           load tokenizers and models the same way everywhere, and refuse what is incomplete before it is used
"""
