"""Sampling whatever the canvas, the policy and the options: finished text that keeps what is given, or one line."""

import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import limited

from unmask import sampling as s
from unmask.corruption import Cosine, Geometric, LogLinear
from unmask.world import InconsistentTable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited through /proc and RLIMIT_AS")

WORLD = InconsistentTable(3, 5, seed=1)
EXAMPLES = int(os.environ.get("UNMASK_EXAMPLES", "80"))  # `make fuzz` takes 500
COUNT = st.sampled_from([-1, 0, 1, 2, 3, 7, 100, 10**6])
SHARE = st.sampled_from([-1.0, 0.0, 1e-300, 0.02, 0.5, 1.0, 1.5, 1e300, float("nan"), float("inf")])
SCHEDULE = st.sampled_from([LogLinear(), Geometric(), Cosine()])


def made(kind, **fields: st.SearchStrategy) -> st.SearchStrategy:
    """A call that makes a policy of drawn fields; it may refuse them."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: lambda: kind(**chosen))


SIMPLE = st.one_of(
    made(s.RandomOrder, tokens=COUNT),
    made(s.LeftToRight, tokens=COUNT),
    made(s.Tweedie, steps=COUNT, schedule=SCHEDULE),
    made(s.Euler, steps=COUNT, schedule=SCHEDULE),
    made(s.FixedOrder, order=st.lists(st.integers(-1, 5), max_size=5).map(tuple)),
    made(s.Confidence, tokens=COUNT),
    made(s.Margin, tokens=COUNT),
    made(s.Entropy, tokens=COUNT),
    made(s.Threshold, probability=SHARE),
    made(s.EntropyBound, nats=SHARE),
    made(s.LowConfidence, steps=COUNT),
    made(s.Greedy, steps=COUNT.filter(lambda n: n < 10**4), eps=SHARE),
    made(s.Remasking, steps=COUNT.filter(lambda n: n < 10**3), cap=SHARE, scale=SHARE, start=SHARE, stop=SHARE),
)
POLICY = st.one_of(
    SIMPLE,
    st.tuples(SIMPLE, COUNT).map(lambda pair: lambda: s.Blocks(size=pair[1], inside=pair[0]())),
    st.tuples(SIMPLE, COUNT).map(lambda pair: lambda: s.Speculative(drafts=pair[1], inside=pair[0]())),
)
DRAW = made(s.Draw, temperature=SHARE, top_k=COUNT, top_p=SHARE)
LIGHT = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


def check_line(error: ValueError) -> None:
    assert len(str(error).splitlines()) == 1


CANVASES = st.lists(st.lists(st.sampled_from([0, 1, 2, 3, 3, 3]), min_size=5, max_size=5), min_size=1, max_size=4)


@LIGHT
@given(
    CANVASES,
    POLICY,
    DRAW,
    st.sampled_from([0, 1, 2, 9]),
    st.sampled_from([0, 1, 2**40, -1]),
    st.sampled_from([None, 0, 2, 5]),
)
def test_any_policy_on_any_canvas(canvases, policy, draw, batch, seed, end):
    """No mask is left, given tokens stay, evaluations are counted, confidences are probabilities."""
    rows = torch.tensor(canvases)
    with limited():
        try:
            done = s.sample(WORLD, rows, policy(), draw=draw(), batch=batch, seed=seed, end=end)
        except ValueError as error:
            check_line(error)
            return
    open_ = rows == WORLD.mask_id
    for given_row, hole, tokens, reveal, sure, nfe in zip(
        rows, open_, done.tokens, done.reveal, done.confidence, done.nfe.tolist(), strict=True
    ):
        assert bool(((tokens >= 0) & (tokens < WORLD.vocab)).all())
        assert torch.equal(tokens[~hole], given_row[~hole])
        assert bool(((sure >= 0) & (sure <= 1 + 1e-9)).all())
        assert torch.equal(reveal < 0, ~hole)
        assert (nfe == 0) == (not bool(hole.any()))


@LIGHT
@given(
    st.lists(
        st.sampled_from(["{{", "}}", "3", "0", "..", "99999999999", " ", "a", "{", "}", "-", "é", "\x00"]), max_size=9
    )
)
def test_any_template(parts):
    """A canvas with as many open tokens as its blanks ask for, or one line."""
    text = "".join(parts)
    try:
        with limited():
            canvas = s.template(text, lambda piece: list(piece.encode()), 256)
    except ValueError as error:
        check_line(error)
        return
    assert int((canvas == 256).sum()) <= 1 << 20
    assert ("{{" in text) == bool((canvas == 256).any())
