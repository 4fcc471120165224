"""How a gradient becomes a step."""

import math
from dataclasses import dataclass

import torch

from unmask.transformer import Transformer


@dataclass(frozen=True)
class Optimiser:
    """AdamW with linear warm-up, then a cosine from `rate` to `final` x rate. Norms and biases do not decay."""

    rate: float = 1e-3
    """Learning rate after the warm-up."""
    final: float = 0.1
    """Learning rate at the end, as a share of `rate`."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decays of AdamW's two moments."""
    weight_decay: float = 0.1
    """AdamW's decay, of matrices only."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no limit."""

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.final >= 0 and self.warmup >= 0 and self.clip >= 0 and self.weight_decay >= 0):
            raise ValueError(f"{self}: rate must be positive, the others 0 or more")

    def at(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, steps - self.warmup)
        return self.rate * (self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2)


def _adamw(network: Transformer, settings: Optimiser) -> torch.optim.AdamW:
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=settings.betas, fused=_fused_on(parameters[0].device))


def _fused_on(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda")
