"""The fused output layer and cross entropy: value and gradients are those of the plain statement."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import unmask.head
from unmask.head import row_nats
from unmask.network import Nats, Target
from unmask.objectives import AnyOrder, LambdaDCE, NextToken, TimeDCE, TimeDSE
from unmask.transformer import Transformer, TransformerConfig

N, D, V, ROWS = 23, 6, 37, 5


def case(dtype: torch.dtype = torch.float64, bias: bool = True, banned: int | None = None) -> tuple:
    g = torch.Generator().manual_seed(0)
    state, weight, last = (torch.randn(size, generator=g, dtype=torch.float64) for size in ((N, D), (V, D), (V,)))
    ids = torch.randint(V - 1, (N,), generator=g)
    ids += banned is not None and ids >= banned
    then = Nats(
        Target(ids, V),
        torch.rand(N, generator=g, dtype=torch.float64) * 4,
        torch.randint(ROWS, (N,), generator=g).sort().values,
        ROWS,
    )
    leaves = [x.to(dtype).requires_grad_() for x in (state, weight, last)]
    return (*leaves[: 2 + bias], *[None] * (not bias), ids, then, banned)


def plain(state: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, then: Nats, banned: int | None) -> Tensor:
    """Logits of all positions, kept, and what `Nats` makes of them."""
    logits = state @ weight.T + (0 if bias is None else bias)
    if banned is not None:
        logits = logits.index_fill(1, torch.tensor([banned]), -torch.inf)
    return then(logits, slice(None))


def gradients(value: Tensor, inputs: tuple, above: Tensor | None = None) -> tuple[Tensor, ...]:
    wanted = [x for x in inputs[:3] if x is not None]
    return torch.autograd.grad(value, wanted, above, retain_graph=True)


@pytest.fixture(params=[(1 << 25, 1 << 22), (V * 5, 60), (1, 7)], ids=["whole", "blocks", "single positions"])
def sizes(request, monkeypatch):
    """How many elements are held at once and in a block."""
    monkeypatch.setattr(unmask.head, "HELD", request.param[0])
    monkeypatch.setattr(unmask.head, "BLOCK", request.param[1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("banned", [None, 0, 11, V - 1])
def test_value_and_gradients_are_those_of_the_plain_statement(sizes, bias: bool, banned: int | None):
    """float64, to rounding: under a sum, a mean, and rows weighed differently (which computes them again)."""
    inputs = case(bias=bias, banned=banned)
    ours, theirs = row_nats(*inputs), plain(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    uneven = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    for total in (lambda x: x.sum() / 7, lambda x: x.mean(), lambda x: (x * uneven).sum(), lambda x: x[0, 2]):
        for mine, other in zip(gradients(total(ours), inputs), gradients(total(theirs), inputs), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
        ours = row_nats(*inputs)


def test_a_second_backward_pass_is_the_first(sizes):
    """The gradients of the forward pass are given away, and computed anew if asked for again."""
    inputs = case()
    value = row_nats(*inputs).sum()
    first = [x.clone() for x in gradients(3 * value, inputs)]
    for one, two in zip(first, gradients(3 * value, inputs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_a_part_that_is_not_trained_gets_no_gradient_and_the_others_theirs(sizes):
    inputs = case()
    whole = gradients(row_nats(*inputs).sum(), inputs)
    for frozen in range(3):
        some = [None if x is None else x.detach().requires_grad_(i != frozen) for i, x in enumerate(inputs[:3])]
        row_nats(*some, *inputs[3:]).sum().backward()
        for i, (x, expected) in enumerate(zip(some, whole, strict=True)):
            assert x.grad is None if i == frozen else torch.allclose(x.grad, expected, rtol=1e-12)


def test_finite_differences(monkeypatch):
    monkeypatch.setattr(unmask.head, "BLOCK", 60)
    state, weight, bias, *rest = case(banned=3)
    assert torch.autograd.gradcheck(lambda *x: row_nats(*x, *rest), (state, weight, bias))


@pytest.mark.parametrize("fault", ["onehot", "weight", "share"])
def test_the_checks_see_planted_faults(fault: str, monkeypatch):
    """A block that forgets what this test names is caught."""
    block = unmask.head._block

    def faulty(*arguments):
        found = block(*arguments)
        changed = {
            "onehot": {"target": found.target + 1e-3},
            "weight": {"state": found.state * 1.001},
            "share": {"lse": found.lse + 1e-3},
        }
        return found._replace(**changed[fault])

    monkeypatch.setattr(unmask.head, "_block", faulty)
    monkeypatch.setattr(unmask.head, "BLOCK", 60)
    state, weight, bias, *rest = case()
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda *x: row_nats(*x, *rest), (state, weight, bias))


def test_float32_and_autocast_keep_the_precision_of_their_products(sizes):
    """float32 to its rounding; under autocast the softmax is of float32 logits, and only operands are rounded."""
    inputs, exact = case(torch.float32), case(torch.float64)
    value, truth = row_nats(*inputs), plain(*exact)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-5)
    for mine, other in zip(gradients(value.sum(), inputs), gradients(truth.sum(), exact), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        value = row_nats(*inputs)
    torch.testing.assert_close(value, truth, rtol=2e-2, atol=2e-2)
    for mine, other in zip(gradients(value.sum(), inputs), gradients(truth.sum(), exact), strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - other).norm() / other.norm()) < 1e-2


def test_a_sure_target_keeps_its_small_gradient():
    """p - 1 = -1e-4 of a certain target: rounded to bfloat16 beside p = 1 it would be 0 or 40 times as much."""
    state, ids = torch.ones(1, 1, requires_grad=True), torch.zeros(1, dtype=torch.long)
    weight = torch.tensor([[9.25], [0.0]], requires_grad=True)
    then = Nats(Target(ids, 2), torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.long), 1)
    with torch.autocast("cpu", torch.bfloat16):
        value = row_nats(state, weight, None, ids, then)
    value.sum().backward()
    assert weight.grad is not None
    q = 1 / (1 + torch.tensor(9.25).exp())
    torch.testing.assert_close(weight.grad.flatten(), torch.stack([-q, q]), rtol=5e-3, atol=0)


def test_no_position_is_no_loss():
    """A batch in which nothing is masked: value 0, gradients 0, and all parameters take part."""
    state, weight, bias, ids, then, _ = case()
    nothing = Nats(Target(ids[:0], V), then.weight[:0], then.row[:0], ROWS)
    value = row_nats(state[:0], weight, bias, ids[:0], nothing)
    assert value.tolist() == [[0.0] * ROWS]
    assert all(not bool(g.any()) for g in gradients(value.sum(), (state[:0], weight, bias)[1:]))


OBJECTIVES = [AnyOrder(), AnyOrder(0.5), LambdaDCE(), TimeDCE(), TimeDSE(), NextToken()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("flavour", ["llama", "dit"])
@pytest.mark.parametrize("mask_id", [None, 4])
def test_every_objective_has_the_gradients_of_logits_that_are_kept(objective, flavour, mask_id, monkeypatch):
    """The network through the fused layer, and through `then` of ordinary logits."""
    config = TransformerConfig(
        vocab=40, layers=1, heads=2, width=8, flavour=flavour, mask_id=mask_id, causal=isinstance(objective, NextToken)
    )
    network = Transformer(config, seed=1).double()
    torch.nn.init.normal_(network.output.weight, generator=torch.Generator().manual_seed(2))
    x_0 = torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(3))
    x_0[x_0 == 4] = 5
    maskable = torch.arange(12).expand(4, -1) > torch.arange(4)[:, None]
    u = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)

    def loss(weigh: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = objective(network, x_0, maskable, u, torch.Generator().manual_seed(4))
        return value, torch.autograd.grad((value * weigh).sum(), list(network.parameters()))

    for weigh in (torch.ones(4, dtype=torch.float64), torch.linspace(-1, 1, 4, dtype=torch.float64)):
        value, found = loss(weigh)
        with monkeypatch.context() as patch:
            patch.setattr("unmask.transformer.network.Nats", type("Other", (), {}))
            plain_value, expected = loss(weigh)
        torch.testing.assert_close(value, plain_value, rtol=1e-12, atol=1e-12)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_an_evaluation_forms_no_gradient(monkeypatch):
    """Without a gradient the fused layer is not entered, and no tensor of the weights' size is made."""
    network = Transformer(TransformerConfig(vocab=40, layers=1, heads=2, width=8))
    monkeypatch.setattr("unmask.transformer.network.row_nats", None)
    x_0 = torch.zeros(2, 6, dtype=torch.long)
    with torch.no_grad():
        u, generator = torch.full((2,), 0.5), torch.Generator().manual_seed(0)
        AnyOrder()(network, x_0, torch.ones_like(x_0, dtype=torch.bool), u, generator)


def test_logits_never_exist_all_at_once(monkeypatch):
    """In training no tensor as large as all logits is made; without the fused layer one is, which the count sees."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.size = max([self.size, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))])
            return out

    vocab = 3000
    network = Transformer(TransformerConfig(vocab=vocab, layers=1, heads=2, width=16))
    x_0 = torch.zeros(8, 32, dtype=torch.long)
    monkeypatch.setattr(unmask.head, "HELD", 16 * vocab)
    everything = torch.ones_like(x_0, dtype=torch.bool)
    for fused in (True, False):
        with Largest() as largest:
            u, generator = torch.full((8,), 0.99), torch.Generator().manual_seed(0)
            if fused:
                AnyOrder()(network, x_0, everything, u, generator).sum().backward()
            else:
                network(x_0, torch.arange(x_0.numel())).sum().backward()
        assert (largest.size <= 16 * (vocab + 1)) == fused
