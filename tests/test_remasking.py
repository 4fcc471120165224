"""Remasking follows the Markov chain of its paper, enumerated here step by step, and never touches what is given."""

import itertools
import math
from collections import defaultdict

import pytest
import torch
from enumeration import Spy, check_counts, check_law, costs, every, number
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.corruption import Cosine, LogLinear
from unmask.sampling import Blocks, Remasking, Tweedie, expected_nfe, sample
from unmask.world import InconsistentTable, JointTable

COUNT = 6_000
FREE, GIVEN = (3, 3, 3), (3, 1, 3)


def chain(world, canvas, policy, places=None) -> tuple[dict, float]:
    """(law over finished canvases, mean number of calls), from z_t to z_s by the published posterior, literally."""
    q = (-costs(world, len(canvas))).exp()
    places = [i for i, token in enumerate(canvas) if token == 3] if places is None else places
    alpha = [float(policy.schedule.alpha(torch.tensor(1 - i / policy.steps))) for i in range(policy.steps + 1)]
    states, calls = {(canvas, (0.0,) * len(canvas)): 1.0}, 0.0
    for step in range(policy.steps):
        now, later, time = alpha[step], alpha[step + 1], 1 - step / policy.steps
        last, following = step == policy.steps - 1, defaultdict(float)
        for (z, sure), p in states.items():
            seen = int(number(torch.tensor([z]), 4))
            sigma = policy.scale * min(policy.cap, (1 - later) / now) * (policy.stop < time <= policy.start)
            written = [i for i in places if z[i] < 3]
            total = sum(math.exp(-sure[i]) for i in written)
            chances = {}
            for i in places:
                share = math.exp(-sure[i]) / total if policy.by_confidence and i in written else 1.0
                kept = 0.0 if policy.by_confidence else sigma
                write = 1.0 if last else (later - (1 - kept) * now) / (1 - now)
                chances[i] = min(max(write, 0.0), 1.0) if z[i] == 3 else (0.0 if last else sigma * share)
            for flips in itertools.product([False, True], repeat=len(places)):
                chance = math.prod(chances[i] if f else 1 - chances[i] for i, f in zip(places, flips, strict=True))
                if chance == 0:
                    continue
                new = [i for i, f in zip(places, flips, strict=True) if f and z[i] == 3]
                calls += p * chance * bool(new)
                for tokens in itertools.product(range(3), repeat=len(new)):
                    to, conf, drawn = list(z), list(sure), 1.0
                    for i, f in zip(places, flips, strict=True):
                        if f and z[i] < 3:
                            to[i], conf[i] = 3, 0.0
                    for i, token in zip(new, tokens, strict=True):
                        to[i], conf[i] = token, round(float(q[seen, i, token]), 9)
                        drawn *= float(q[seen, i, token])
                    following[tuple(to), tuple(conf)] += p * chance * drawn
        states = following
    law = defaultdict(float)
    for (z, _), p in states.items():
        law[z] += p
    return law, calls


def as_vector(law: dict) -> torch.Tensor:
    return torch.tensor([law.get(tuple(x), 0.0) for x in every(3, 3).tolist()], dtype=torch.float64)


@pytest.mark.parametrize("world", [JointTable(3, 3), InconsistentTable(3, 3)], ids=["joint", "inconsistent"])
@pytest.mark.parametrize("canvas", [FREE, GIVEN], ids=["free", "given"])
@pytest.mark.parametrize(
    "policy",
    [
        Remasking(4, cap=0.3),
        Remasking(3, cap=1.0, scale=0.6, schedule=Cosine()),
        Remasking(4, cap=1.0, by_confidence=True),
        Remasking(5, cap=0.5, start=0.7, stop=0.3),
    ],
    ids=repr,
)
def test_the_law_is_the_papers_chain(world, canvas, policy):
    law, calls = chain(world, canvas, policy)
    samples = sample(world, torch.tensor([canvas] * COUNT), policy, batch=6000)
    check_law(samples.tokens, as_vector(law), 3)
    nfe = samples.nfe.double()
    assert abs(float(nfe.mean()) - calls) < 4.5 * float(nfe.std()) / math.sqrt(COUNT)


def test_another_chain_is_seen():
    samples = sample(InconsistentTable(3, 3), torch.tensor([FREE] * COUNT), Remasking(4, cap=0.3), batch=6000)
    for other in (Remasking(4, cap=0.0), Remasking(4, cap=0.3, by_confidence=True)):
        law, _ = chain(InconsistentTable(3, 3), FREE, other)
        with pytest.raises(AssertionError):
            check_law(samples.tokens, as_vector(law), 3)


def test_in_blocks_the_first_is_finished_before_the_next_begins():
    world, policy = InconsistentTable(3, 3), Remasking(3, cap=0.5)
    first, _ = chain(world, FREE, policy, places=[0, 1])
    law = defaultdict(float)
    for z, p in first.items():
        for x, share in chain(world, z, policy, places=[2])[0].items():
            law[x] += p * share
    samples = sample(world, torch.tensor([FREE] * COUNT), Blocks(2, policy), batch=6000)
    check_law(samples.tokens, as_vector(law), 3)


def test_without_erasing_it_is_tau_leaping():
    """The same NFE law as Tweedie's closed form, and steps that write nothing cost nothing."""
    spy = Spy(JointTable(3, 3))
    samples = sample(spy, torch.tensor([FREE] * 4000), Remasking(8, cap=0.0), batch=1000)
    nfe = samples.nfe.double()
    assert abs(float(nfe.mean()) - expected_nfe(8, 3)) < 4.5 * float(nfe.std()) / math.sqrt(4000)
    assert sum(len(tokens) for tokens, _, _ in spy.asked) == int(samples.nfe.sum())
    tweedie = sample(JointTable(3, 3), torch.tensor([FREE] * 4000), Tweedie(8), batch=1000)
    counts = torch.bincount(number(torch.stack(samples.tokens), 3), minlength=27)
    other = torch.bincount(number(torch.stack(tweedie.tokens), 3), minlength=27)
    check_counts(counts, (counts + other).double() / 8000)


def test_steps_tell_what_was_erased():
    """Following the steps, a reader ends with the sample; on the way tokens disappear again."""
    canvas, seen, erased = torch.tensor([FREE] * 50), torch.tensor([FREE] * 50), 0

    def watch(step):
        nonlocal erased
        pairs = list(zip(step.sequence.tolist(), step.position.tolist(), strict=True))
        assert len(pairs) == len(set(pairs))
        gone = step.token == 3
        erased += int(gone.sum())
        assert bool((seen[step.sequence, step.position] < 3)[gone].all())
        seen[step.sequence, step.position] = step.token

    samples = sample(InconsistentTable(3, 3), canvas, Remasking(8, cap=0.5), on_step=watch)
    assert torch.equal(seen, torch.stack(samples.tokens))
    assert erased > 20


class Told(Spy):
    """A network that finds the level it is told to be the share of masks it sees."""

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        assert torch.equal(level, (tokens == self.mask_id).double().mean(-1))
        return super().__call__(tokens, at, then=then, rows=rows, level=level)


@pytest.mark.parametrize("policy", [Remasking(8, cap=0.5), Blocks(2, Remasking(8, cap=0.5)), Tweedie(4)], ids=repr)
def test_the_level_is_the_share_of_masks(policy):
    """What is erased in the step of a call is still seen in it."""
    sample(Told(InconsistentTable(3, 3)), torch.tensor([FREE] * 200), policy)


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
    st.integers(1, 9),
    st.floats(0, 1),
    st.booleans(),
    st.integers(1, 3),
)
def test_any_canvas_is_filled_and_what_is_given_stays(tokens, steps, cap, by_confidence, size):
    canvas, policy = torch.tensor(tokens), Remasking(steps, cap=cap, by_confidence=by_confidence, schedule=LogLinear())
    for each in (policy, Blocks(size, policy)):
        samples = sample(InconsistentTable(3, 3), [canvas, canvas], each)
        for row in samples.tokens:
            assert bool((row < 3).all())
            assert torch.equal(row[canvas < 3], canvas[canvas < 3])


def test_a_sequence_does_not_depend_on_its_batch():
    world, policy = InconsistentTable(3, 3), Blocks(2, Remasking(6, cap=0.4, by_confidence=True))
    together = sample(world, torch.tensor([FREE] * 9), policy, seed=4, batch=4)
    for i in range(9):
        alone = sample(world, torch.tensor([FREE]), policy, seed=4, sequences=[i])
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.confidence[0], together.confidence[i])


def test_bad_options_are_named():
    for bad in ({"steps": 0}, {"cap": 1.5}, {"scale": -0.1}, {"start": 0.2, "stop": 0.4}):
        with pytest.raises(ValueError, match="Remasking"):
            Remasking(**bad)
    with pytest.raises(ValueError, match="end token"):
        sample(JointTable(3, 3), torch.tensor([FREE]), Remasking(4), end=0)


def test_a_record_tells_what_was_erased(tmp_path):
    """Replaying a record's history, writing by writing and erasure by erasure, ends in its text."""
    from test_cli import make_run

    from unmask.checkpoint import load
    from unmask.evaluate import write

    model = load(make_run(tmp_path / "run"))
    records = write(model, ["ab{{12}}c", "{{12}}"], Remasking(8, cap=0.6), batch=2, seed=4)
    for record in records:
        held: list = [None] * len(record["pieces"])
        when, erasures = [-1] * len(held), 0
        for step, position, piece, confidence in record["history"]:
            assert not record["given"][position]
            assert step >= when[position]
            assert (piece is None) == (confidence == 0.0)
            erasures += piece is None
            held[position], when[position] = piece, step
        assert erasures > 0
        final = [piece for piece, given in zip(held, record["given"], strict=True) if not given]
        assert None not in final
        assert [at for at in when if at >= 0] == [at for at in record["step"] if at >= 0]
        assert max(when) + 1 == record["nfe"]
    assert "history" not in write(model, ["{{6}}"], Remasking(8, cap=0.0))[0]
