"""What a model of a given shape needs, and how fast it runs: memory, operations and rates of the stages.

activations   bytes of activations: what a backward pass needs, and what one pass holds for a moment
build         models of a shape with random weights, on a GPU, a CPU, or the meta device
estimate      memory and operations of a stage, does it fit, and what would
flops         floating-point operations of a step
measure       run a stage for real and set it against its estimate and the rate of matrix products
meter         how many bytes of tensors are alive at most, on a GPU or a CPU
rate          the rate of matrix products on this device
settings      how a stage is run, as far as memory and operations depend on it
shapes        shapes of decoder-only models: sizes, parameter counts, key-value bytes
training      memory of a training step on one GPU, moment by moment
workloads     the stages as this project runs them, on random weights and rows
"""
