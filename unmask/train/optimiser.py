"""How a gradient becomes a step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class Optimiser:
    """AdamW with linear warm-up, then `rate`, which falls by a cosine to `final` x rate over the last `decay` of the
    steps. Norms and biases do not decay. A subclass may have another schedule as its `at`.
    """

    rate: float = 1e-3
    """Learning rate after the warm-up."""
    final: float = 0.1
    """Learning rate at the end, as a share of `rate`."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    decay: float = 1.0
    """Share of the steps, the last ones, over which the learning rate falls: 1 as soon as it has risen, 0.2 for
    warm-up, stable, decay (WSD), 0 never."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decays of AdamW's two moments."""
    weight_decay: float = 0.1
    """AdamW's decay, of matrices only."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no limit."""
    muon: bool = False
    """The blocks' matrices by Muon (torch 2.9 or newer), at the same rate; all else stays with AdamW."""

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.final >= 0 and self.warmup >= 0 and self.clip >= 0 and self.weight_decay >= 0):
            raise ValueError(f"{self}: rate must be positive, the others 0 or more")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay {self.decay} is a share of the steps: give 0 to 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must be in [0, 1)")
        if self.muon and not hasattr(torch.optim, "Muon"):
            raise ValueError(f"muon: torch {torch.__version__} has none: install torch 2.9 or newer, or leave it out")

    def at(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        start = max(self.warmup, steps * (1 - self.decay))
        share = max(0, step - start) / max(1, steps - start)
        return self.rate * (self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2)


def optimisers(network: Transformer, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the blocks' matrices where it is asked for.

    Muon (Jordan 2024) steps along U V', U S V' being the singular value decomposition of the Nesterov momentum, which
    five Newton-Schulz iterations in bfloat16 approach to singular values of about 0.7 to 1.2. Its rate is scaled by
    0.2 sqrt(longer side), so that an entry moves about as far as by AdamW (Liu et al., arXiv 2502.16982).
    """
    matrices = hidden_matrices(network) if settings.muon else []
    theirs = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in theirs and p.requires_grad]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = _fused_on(others[0].device)
    adamw = torch.optim.AdamW(groups, lr=settings.rate, betas=settings.betas, fused=fused)
    if not matrices:
        return [adamw]
    options = {"lr": settings.rate, "weight_decay": settings.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [adamw, torch.optim.Muon(matrices, **options)]


def hidden_matrices(network: Transformer) -> list[Tensor]:
    """The matrices between embedding and output layer, with queries, keys and values, and gate and up, each as one."""
    return [p for p in network.blocks.parameters() if p.dim() == 2]


def muon_flops(config: TransformerConfig) -> float:
    """Of one step's iterations: 5 x (4 m^2 n + 2 m^3) for an m x n matrix, m the shorter side."""
    sides = [sorted(p.shape) for p in hidden_matrices(config.build(None))]
    return 5.0 * sum(4 * m * m * n + 2 * m**3 for m, n in sides)


def _fused_on(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda")
