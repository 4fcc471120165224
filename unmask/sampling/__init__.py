"""Sampling: where to write is planned first, what to write is drawn from the network.

A time-free network's prediction depends on the canvas alone, and in tau-leaping, any-order and left-to-right
sampling WHERE to write next does not depend on WHAT was written. So a policy draws the whole plan of a sequence
before the first call, and three things follow, all exact: steps at which nothing changes cost nothing (RADD's cache,
without a cache), rows never wait for each other, and the output layer runs only where a token is drawn.

A canvas holds tokens, and `mask_id` where text is wanted: free generation, a prompt, prefix and suffix and a form
with blanks are all canvases. A policy is a frozen dataclass with `plan` and `exact_for`; that is the whole of what a
new one needs.
"""

from unmask.sampling.adaptive import (
    Adaptive,
    AdaptivePolicy,
    Confidence,
    Entropy,
    EntropyBound,
    Greedy,
    LowConfidence,
    Margin,
    Threshold,
)
from unmask.sampling.automaton import Automaton
from unmask.sampling.blocks import Blocks, inside_of
from unmask.sampling.canvas import behind_end, template
from unmask.sampling.constraints import Constraint
from unmask.sampling.drawing import Draw
from unmask.sampling.matching import Matches, sample_matching
from unmask.sampling.planned import (
    Euler,
    FixedOrder,
    LeftToRight,
    Planned,
    Policy,
    RandomOrder,
    Tweedie,
    draw_plan,
    expected_nfe,
    is_drawn,
    nfe_of,
    plan_of,
    without_gaps,
)
from unmask.sampling.rated import Rated
from unmask.sampling.remasking import Remasking
from unmask.sampling.runner import Samples, decode_nats, sample, stream
from unmask.sampling.speculative import Speculative
from unmask.sampling.turns import chooser_of, revising_of
from unmask.sampling.work import Step

__all__ = [
    "Adaptive",
    "AdaptivePolicy",
    "Automaton",
    "Blocks",
    "Confidence",
    "Constraint",
    "Draw",
    "Entropy",
    "EntropyBound",
    "Euler",
    "FixedOrder",
    "Greedy",
    "LeftToRight",
    "LowConfidence",
    "Margin",
    "Matches",
    "Planned",
    "Policy",
    "RandomOrder",
    "Rated",
    "Remasking",
    "Samples",
    "Speculative",
    "Step",
    "Threshold",
    "Tweedie",
    "behind_end",
    "chooser_of",
    "decode_nats",
    "draw_plan",
    "expected_nfe",
    "inside_of",
    "is_drawn",
    "nfe_of",
    "plan_of",
    "revising_of",
    "sample",
    "sample_matching",
    "stream",
    "template",
    "without_gaps",
]
