"""unmask: masked diffusion language models. Train them, sample from them, and measure a likelihood one can trust.

model = unmask.load("runs/tiny")
samples = unmask.sample(model, [model.canvas("Once {{8}} there was")], unmask.RandomOrder())
estimate = unmask.log_likelihood(model, x_0)
"""

from unmask import grammar
from unmask.checkpoint import Model, load
from unmask.corruption import Cosine, Geometric, LogLinear
from unmask.likelihood import Estimate, decoder_log_likelihood, log_likelihood, ordered_log_likelihood
from unmask.objectives import AnyOrder, LambdaDCE, NextToken, TimeDCE, TimeDSE, concrete_score
from unmask.sampling import (
    Blocks,
    Confidence,
    Constraint,
    Draw,
    Entropy,
    EntropyBound,
    Euler,
    FixedOrder,
    Greedy,
    LeftToRight,
    LowConfidence,
    Margin,
    RandomOrder,
    Remasking,
    Samples,
    Step,
    Threshold,
    Tweedie,
    draw_plan,
    expected_nfe,
    sample,
    sample_matching,
    stream,
    template,
)
from unmask.transformer import Transformer, TransformerConfig
from unmask.wrappers import Biased, Guided

__all__ = [
    "AnyOrder",
    "Biased",
    "Blocks",
    "Confidence",
    "Constraint",
    "Cosine",
    "Draw",
    "Entropy",
    "EntropyBound",
    "Estimate",
    "Euler",
    "FixedOrder",
    "Geometric",
    "Greedy",
    "Guided",
    "LambdaDCE",
    "LeftToRight",
    "LogLinear",
    "LowConfidence",
    "Margin",
    "Model",
    "NextToken",
    "RandomOrder",
    "Remasking",
    "Samples",
    "Step",
    "Threshold",
    "TimeDCE",
    "TimeDSE",
    "Transformer",
    "TransformerConfig",
    "Tweedie",
    "concrete_score",
    "decoder_log_likelihood",
    "draw_plan",
    "expected_nfe",
    "grammar",
    "load",
    "log_likelihood",
    "ordered_log_likelihood",
    "sample",
    "sample_matching",
    "stream",
    "template",
]
