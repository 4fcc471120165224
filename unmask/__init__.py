"""unmask: masked diffusion language models. Train them, sample from them, and measure a likelihood one can trust.

model = unmask.load("runs/tiny")
samples = unmask.sample(model, [model.canvas("Once {{8}} there was")], unmask.RandomOrder())
estimate = unmask.log_likelihood(model, x_0)
"""

from unmask.checkpoint import Model, load
from unmask.corruption import Cosine, Geometric, LogLinear
from unmask.likelihood import Estimate, log_likelihood, ordered_log_likelihood
from unmask.objectives import AnyOrder, LambdaDCE, NextToken, TimeDCE, TimeDSE, concrete_score
from unmask.sampling import (
    Draw,
    Euler,
    FixedOrder,
    LeftToRight,
    RandomOrder,
    Samples,
    Step,
    Tweedie,
    draw_plan,
    expected_nfe,
    sample,
    template,
)
from unmask.transformer import Transformer, TransformerConfig

__all__ = [
    "AnyOrder",
    "Cosine",
    "Draw",
    "Estimate",
    "Euler",
    "FixedOrder",
    "Geometric",
    "LambdaDCE",
    "LeftToRight",
    "LogLinear",
    "Model",
    "NextToken",
    "RandomOrder",
    "Samples",
    "Step",
    "TimeDCE",
    "TimeDSE",
    "Transformer",
    "TransformerConfig",
    "Tweedie",
    "concrete_score",
    "draw_plan",
    "expected_nfe",
    "load",
    "log_likelihood",
    "ordered_log_likelihood",
    "sample",
    "template",
]
