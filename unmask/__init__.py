"""unmask: masked diffusion language models. Train them, sample from them, and measure a likelihood one can trust.

model = unmask.load("runs/tiny")
samples = unmask.sample(model, [model.canvas("Once {{8}} there was")], unmask.RandomOrder())
estimate = unmask.log_likelihood(model, x_0)
"""

from unmask.checkpoint import Model, load
from unmask.corruption import Cosine, Geometric, LogLinear
from unmask.likelihood import (
    Estimate,
    Surprisal,
    compare,
    conditional,
    decoder_log_likelihood,
    importance_log_likelihood,
    log_likelihood,
    ordered_log_likelihood,
    ordered_surprisal,
    surprisal,
)
from unmask.objectives import AnyOrder, LambdaDCE, NextToken, TimeDCE, TimeDSE, concrete_score
from unmask.sampling import (
    Blocks,
    Confidence,
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
    "Surprisal",
    "Threshold",
    "TimeDCE",
    "TimeDSE",
    "Transformer",
    "TransformerConfig",
    "Tweedie",
    "compare",
    "concrete_score",
    "conditional",
    "decoder_log_likelihood",
    "draw_plan",
    "expected_nfe",
    "importance_log_likelihood",
    "load",
    "log_likelihood",
    "ordered_log_likelihood",
    "ordered_surprisal",
    "sample",
    "stream",
    "surprisal",
    "template",
]
