"""unmask: masked diffusion language models. Train them, sample from them, and measure a likelihood one can trust.

model = unmask.load("runs/tiny")
samples = unmask.sample(model, [model.canvas("Once {{8}} there was")], unmask.RandomOrder())
estimate = unmask.log_likelihood(model, x_0)
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# At its first tensor torch asks Linux for pages of 2 MB, where memory is read a quarter faster (benchmarks/products.py)
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from unmask import grammar
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
        Rated,
        Remasking,
        Samples,
        Speculative,
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
    "Plain",
    "RandomOrder",
    "Rated",
    "Remasking",
    "Samples",
    "Speculative",
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
    "grammar",
    "importance_log_likelihood",
    "load",
    "log_likelihood",
    "ordered_log_likelihood",
    "ordered_surprisal",
    "sample",
    "sample_matching",
    "stream",
    "surprisal",
    "template",
]

FACES = ("checkpoint", "corruption", "likelihood", "objectives", "sampling", "transformer", "wrappers")


def __getattr__(name: str) -> object:
    """A public name, looked up when it is first asked for: torch takes a second that `unmask --help` need not wait."""
    if name in ("grammar", *FACES):
        return import_module(f"unmask.{name}")
    if name in __all__:
        homes = (import_module(f"unmask.{face}") for face in FACES)
        value = next(getattr(home, name) for home in homes if name in getattr(home, "__all__", vars(home)))
        globals()[name] = value
        return value
    raise AttributeError(f"module 'unmask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
