"""What a model of a given shape needs, and how fast it runs: memory, operations and rates of the stages.

activations   bytes of activations: what a backward pass needs, and what one pass holds for a moment
estimate      memory and operations of a stage, does it fit, and what would
flops         floating-point operations of a step
settings      how a stage is run, as far as memory and operations depend on it
shapes        shapes of decoder-only models: sizes, parameter counts, key-value bytes
training      memory of a training step on one GPU, moment by moment
"""
