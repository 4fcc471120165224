"""The exact worlds are what they say: everything else is proven on them."""

import itertools
import math

import pytest
import torch
from enumeration import CausalTable, costs, every, expected, in_order, in_steps, law, number, opened, random_orders

from unmask import network as networks
from unmask.network import Target, read_out
from unmask.world import InconsistentTable, JointTable, Wide, all_sequences

JOINTS = [JointTable(3, 3), JointTable(2, 4, seed=5), JointTable(3, 3, seed=2, sharpness=4.0)]
INCONSISTENT = [InconsistentTable(3, 3), InconsistentTable(2, 4, seed=5)]


def by_hand(world: JointTable) -> dict[tuple[int, ...], float]:
    sequences = itertools.product(range(world.vocab), repeat=world.length)
    return dict(zip(sequences, world.log_p.exp().tolist(), strict=True))


def test_all_sequences():
    for vocab, length in ((3, 3), (2, 5), (4, 1)):
        x = all_sequences(vocab, length)
        assert torch.equal(x, every(vocab, length))
        assert torch.equal(number(x, vocab), torch.arange(vocab**length))


@pytest.mark.parametrize("world", JOINTS, ids=str)
def test_joint_conditionals_are_ratios_of_sums(world: JointTable):
    p = by_hand(world)
    assert math.isclose(sum(p.values()), 1, rel_tol=1e-12)
    for canvas in itertools.product(range(world.vocab + 1), repeat=world.length):
        agreeing = [x for x in p if all(c in (world.mask_id, v) for c, v in zip(canvas, x, strict=True))]
        total = sum(p[x] for x in agreeing)
        tokens = torch.tensor([canvas])
        assert math.isclose(float(world.marginal(tokens).exp()), total, rel_tol=1e-12)
        q = world(tokens, torch.arange(world.length)).softmax(-1)
        for i, v in itertools.product(range(world.length), range(world.vocab)):
            want = sum(p[x] for x in agreeing if x[i] == v) / total
            assert math.isclose(float(q[i, v]), want, rel_tol=1e-12, abs_tol=1e-15)


@pytest.mark.parametrize("world", JOINTS, ids=str)
def test_on_a_joint_table_every_order_gives_the_truth(world: JointTable):
    table, x = costs(world, world.length), every(world.vocab, world.length)
    for order in itertools.permutations(range(world.length)):
        assert torch.allclose(-in_order(table, x, in_steps(order)), world.log_p, rtol=1e-12)


@pytest.mark.parametrize("world", INCONSISTENT, ids=str)
def test_on_an_inconsistent_table_orders_disagree_and_the_bound_is_strict(world: InconsistentTable):
    table, x = costs(world, world.length), every(world.vocab, world.length)
    nats = [in_order(table, x, in_steps(order)) for order in itertools.permutations(range(world.length))]
    for a, b in itertools.combinations(nats, 2):
        assert float((a - b).abs().max()) > 0.1
    for one in nats:
        assert math.isclose(float((-one).exp().sum()), 1, rel_tol=1e-12), "each order is a law"
    plans = random_orders(range(world.length))
    whole = law(plans, table, torch.full((world.length,), world.mask_id))
    assert math.isclose(float(whole.sum()), 1, rel_tol=1e-12)
    assert bool((expected(plans, table, x) > -whole.log() + 1e-3).all())


@pytest.mark.parametrize("world", INCONSISTENT, ids=str)
def test_each_canvas_has_its_own_normalised_conditionals(world: InconsistentTable):
    canvases = every(world.vocab + 1, world.length)
    logits = world(canvases, torch.arange(canvases.numel()))
    assert torch.allclose(logits.logsumexp(-1), torch.zeros(len(logits), dtype=torch.float64), atol=1e-12)
    assert len({tuple(row.tolist()) for row in logits}) == len(logits)


@pytest.mark.parametrize("world", [*JOINTS, *INCONSISTENT, Wide(6)], ids=str)
def test_only_what_is_asked_for_in_the_order_asked(world, monkeypatch: pytest.MonkeyPatch):
    length = getattr(world, "length", 3)
    canvases = every(world.vocab + 1, length)
    whole = world(canvases, torch.arange(canvases.numel()))
    generator = torch.Generator().manual_seed(0)
    at = torch.randperm(canvases.numel(), generator=generator)[:50]
    assert torch.equal(world(canvases, at), whole[at])
    assert world(canvases, at[:0]).shape == (0, world.vocab)
    ids = torch.randint(0, world.vocab, (50,), generator=generator)
    want = whole[at].log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    for chunk in (1, 7 * world.vocab, 10**6):
        monkeypatch.setattr(networks, "CHUNK", chunk)
        finite = want.isfinite()
        got = world(canvases, at, then=Target(ids, world.vocab))
        assert torch.allclose(got[finite].double(), want[finite].double(), rtol=1e-6)
        assert bool((got[~finite] < -1e300).all())


def test_read_out_joins_chunks_of_tuples(monkeypatch: pytest.MonkeyPatch):
    logits = torch.arange(54.0).view(18, 3)
    widths, begun = [], []

    def then(part: torch.Tensor, which: slice) -> tuple[torch.Tensor, torch.Tensor]:
        widths.append(len(part))
        begun.append(which.start)
        return part.argmax(-1), part[:, 0]

    for name in ("CHUNK", "CACHED"):
        widths.clear()
        begun.clear()
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(networks, name, 24)
            index, value = read_out(lambda which: logits[which], 18, 3, then)
        assert (widths, begun) == ([8, 8, 2], [0, 8, 16]), "no more than so many elements at once"
        assert index.tolist() == [2] * 18
        assert torch.equal(value, logits[:, 0])


def test_worlds_repeat_by_seed():
    for make, name in ((JointTable, "log_p"), (InconsistentTable, "table")):
        tables = [getattr(make(3, 3, seed=seed), name) for seed in (0, 0, 1)]
        assert torch.equal(tables[0], tables[1])
        assert not torch.equal(tables[0], tables[2])
    flat = JointTable(3, 3, sharpness=0.0)
    assert torch.allclose(flat.log_p, torch.full((27,), -math.log(27), dtype=torch.float64))


def test_wide_is_flat_in_float32():
    logits = Wide()(torch.full((2, 5), 50_000), torch.arange(7))
    assert logits.shape == (7, 50_000)
    assert logits.dtype == torch.float32
    assert float(logits.abs().max()) == 0


def test_the_tests_causal_table_is_a_law():
    world = CausalTable()
    assert math.isclose(float(world.log_p().exp().sum()), 1, rel_tol=1e-12)
    assert opened(torch.tensor([0, 3, 1, 3]), 3) == [1, 3]
