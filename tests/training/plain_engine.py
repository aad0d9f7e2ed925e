"""The training loop without DeepSpeed: what its engine does for one rank, in plain torch."""

from __future__ import annotations

import toy

from guardrail.training.batches import line_attention
from guardrail.training.loop import Trainer


class PlainEngine:
    """What the loop needs of DeepSpeed's engine, in plain torch: gradients add up until the boundary."""

    device = "cpu"
    accumulation = 2

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM

        self.module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.5)
        self.boundary = True

    def __call__(self, **inputs):
        return self.module(**inputs)

    def set_gradient_accumulation_boundary(self, boundary):
        self.boundary = boundary

    def gradient_accumulation_steps(self):
        return self.accumulation

    def zero_optimization_stage(self):
        return 0

    def backward(self, loss, scale_wrt_gas):
        loss.backward()

    def step(self):
        if self.boundary:
            self.optimizer.step()
            self.optimizer.zero_grad()


def train(folder, data, defence, **options):
    """Losses and weights of two optimizer steps."""
    config = toy.config(per_device_train_batch_size=4, gradient_accumulation_steps=PlainEngine.accumulation, **options)
    engine = PlainEngine(folder)
    defence.model(engine.module)
    attention = line_attention(engine.module, config.batching)
    trainer = Trainer(engine, data, config, 2, lambda *_: None, lambda _: None, defence, attention)
    defence.begin(engine)
    return trainer.train(2), engine.module.state_dict()
