"""The audit: does a sampler follow the law that it states?

audit(Confidence(2)).check()                                        # a policy of the package
audit(MyPolicy(), law=RandomOrderLaw()).check()                     # one of yours, with the law that you state
audit(my_sampler, law=tweedie(64, LogLinear()), draws=20_000)       # any sampler: see `Sampler`

A law is a Markov chain on canvases (`laws`), followed exactly on small networks whose every probability is known;
samples are compared with it in total variation and by chi-square, and what a sampler costs with the law of its NFE.
"""

from unmask.audit.checking import Sampler, Written, audit
from unmask.audit.findings import HEADER, Audit, Finding
from unmask.audit.laws import (
    AT_ONCE,
    At,
    BlocksLaw,
    CoinsLaw,
    IndependentLaw,
    Law,
    OrderLaw,
    PlansLaw,
    RandomOrderLaw,
    RankedLaw,
    RatedLaw,
    TokensOnly,
    Truth,
    coins,
    follow,
)
from unmask.audit.stated import EVERY, euler, stated_law, tweedie

__all__ = [
    "AT_ONCE",
    "EVERY",
    "HEADER",
    "At",
    "Audit",
    "BlocksLaw",
    "CoinsLaw",
    "Finding",
    "IndependentLaw",
    "Law",
    "OrderLaw",
    "PlansLaw",
    "RandomOrderLaw",
    "RankedLaw",
    "RatedLaw",
    "Sampler",
    "TokensOnly",
    "Truth",
    "Written",
    "audit",
    "coins",
    "euler",
    "follow",
    "stated_law",
    "tweedie",
]
