"""Likelihood with its error: what was estimated, how surely, and of which law.

For a bidirectional network the random-order bound of RADD's four losses is estimated by Monte Carlo; for a stated
order (that of a causal network, or any order in which an MDM decodes) the chain rule is exact; the law of a sampler
that draws its order lies between the two, and the mean over several orders bounds it more tightly. Two errors are
kept apart: `stderr_mc` is that of the maskings with the texts held fixed, `stderr_data` that of the texts.

A position of x_0 that holds the mask is hidden: neither seen nor scored (`conditional`). Where no `maskable` says what
is scored, all else is, but for a begin token in front (`Model.canvas` puts it there), which is given.
"""

from unmask.likelihood.bound import Surprisal, log_likelihood, surprisal
from unmask.likelihood.estimate import Bound, Estimate, compare, precision_of
from unmask.likelihood.ordered import (
    decoder_log_likelihood,
    importance_log_likelihood,
    ordered_log_likelihood,
    ordered_surprisal,
)
from unmask.likelihood.texts import conditional

__all__ = [
    "Bound",
    "Estimate",
    "Surprisal",
    "compare",
    "conditional",
    "decoder_log_likelihood",
    "importance_log_likelihood",
    "log_likelihood",
    "ordered_log_likelihood",
    "ordered_surprisal",
    "precision_of",
    "surprisal",
]
