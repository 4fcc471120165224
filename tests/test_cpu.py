"""Functions whose gradients are written by hand: each is its plain statement, in value and gradient."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask import cpu
from unmask.cache import attention
from unmask.objectives import AnyOrder, NextToken
from unmask.transformer import Transformer, TransformerConfig, rotary_tables, rotate


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def check(ours: Callable, plain: Callable, *inputs: Tensor) -> None:
    """float64: value and gradients to rounding, and the gradient by finite differences."""
    one, two = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    above = drawn(*two.shape, seed=9).detach()
    pairs = zip(torch.autograd.grad(one, inputs, above), torch.autograd.grad(two, inputs, above), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)
    assert torch.autograd.gradcheck(ours, inputs, fast_mode=True)


def test_swiglu():
    check(cpu.SwiGLU.apply, lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], drawn(2, 3, 10))


def test_rms_norm():
    check(
        lambda x, w: cpu.RMSNorm.apply(x, w, 1e-3), lambda x, w: F.rms_norm(x, (6,), w, 1e-3), drawn(2, 3, 6), drawn(6)
    )


def test_rms_norm_without_a_gradient():
    for dtype, near in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        x, weight = drawn(2, 3, 6).detach().to(dtype), drawn(6).detach().to(dtype)
        for scaled in (x, 1e-4 * x, 0 * x):  # eps counts where there is little, and saves where there is nothing
            plain = F.rms_norm(scaled, (6,), weight, 1e-5)
            torch.testing.assert_close(cpu.rms_norm(scaled, weight, 1e-5), plain, rtol=near, atol=near * 1e-3)


FREED = """
import resource, sys, torch
from unmask import cpu
if "kept" in sys.argv:
    cpu.keep_freed()
x = torch.zeros(1 << 22)  # 16 MB
def run():
    for _ in range(20):
        several = [x + i for i in range(4)]
        del several
run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_tensor():
    """Pages that the system has to give while the same tensors are made 20 times; and a network asks for that.

    glibc's own threshold moves with what was freed before: here it is given, and asked for again by `keep_freed`.
    """
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    pages = [
        int(subprocess.run([sys.executable, "-c", FREED, how], env=given, check=True, capture_output=True).stdout)
        for how in ("plain", "kept")
    ]
    assert 20 * pages[1] <= pages[0] >= 4096  # 16 MB are 4,096 pages
    cpu.keep_freed.cache_clear()
    Transformer(TransformerConfig(8, 1, 1, 8))
    assert cpu.keep_freed.cache_info().currsize == 1


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool):
    inputs = (drawn(2, 3, 5), drawn(4, 5), *[drawn(4)] * bias)
    check(lambda x, w, b=None: cpu._Linear.apply(x, w, b), F.linear, *inputs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("held", [1, 1 << 20])
@pytest.mark.parametrize("apart", [True, False])
def test_attention(causal: bool, groups: int, held: int, apart: bool, monkeypatch):
    """With rotary positions, grouped queries, some heads at a time, within segments of a sequence."""
    monkeypatch.setattr(cpu, "SCORES", held)
    config = TransformerConfig(vocab=3, heads=4, width=24, kv_heads=groups)
    cos, sin = (table.double() for table in rotary_tables(config, 5, torch.device("cpu")))

    def plain(qkv: Tensor) -> Tensor:
        kv = groups * 6
        q, k, v = (part.unflatten(-1, (-1, 6)) for part in qkv.split([24, kv, kv], -1))
        q, k = (rotate(part, (cos, sin)) for part in (q, k))
        return attention(q, k, v, seen=seen, causal=causal and not apart).flatten(2)

    segments = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    seen = (segments[:, None, :, None] == segments[:, None, None, :]) if apart else None
    if seen is not None and causal:
        seen = seen.tril()
    ours = partial(lambda qkv: cpu.Attention.apply(qkv, cos, sin, 4, groups, causal, seen))
    check(ours, plain, drawn(2, 5, 24 + 12 * groups))


def test_the_checks_see_a_planted_fault(monkeypatch):
    """A rotation that is not undone in the backward pass."""
    turn = cpu._turn
    monkeypatch.setattr(cpu, "_turn", lambda x, cos, sin: turn(x, cos, sin.abs()))
    with pytest.raises(AssertionError):
        test_attention(False, 2, 1, False, monkeypatch)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("flavour", ["llama", "dit"])
def test_a_network_trained_by_hand_is_the_network(precision: str, causal: bool, flavour: str, monkeypatch):
    """Loss and gradients with and without this module, at a size at which all of it takes part; faults are seen."""
    config = TransformerConfig(vocab=300, layers=2, heads=4, width=128, causal=causal, flavour=flavour)
    network = Transformer(config, seed=1)
    torch.nn.init.normal_(network.output.weight, std=0.1, generator=torch.Generator().manual_seed(2))
    x_0 = torch.randint(300, (4, 64), generator=torch.Generator().manual_seed(3))
    maskable = torch.arange(64).expand(4, -1) > 0
    u = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)

    def found() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            objective = NextToken() if causal else AnyOrder()
            loss = objective(network, x_0, maskable, u, torch.Generator().manual_seed(4)).sum() / maskable.sum()
        gradient = torch.autograd.grad(loss, list(network.parameters()))
        return loss.detach(), torch.cat([g.flatten() for g in gradient])

    loss, gradient = found()
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "by_hand", lambda x: False)
        patch.setattr(cpu, "ONEDNN", False)
        plain_loss, plain_gradient = found()
    rough = precision == "bfloat16"
    assert float((loss - plain_loss).abs() / plain_loss) < (1e-3 if rough else 1e-6)
    assert float((gradient - plain_gradient).norm() / plain_gradient.norm()) < (2e-2 if rough else 1e-5)
    monkeypatch.setattr("unmask.head.times", lambda x, y: 1.5 * (x @ y.t()))
    assert float((found()[1] - plain_gradient).norm() / plain_gradient.norm()) > 2e-2


def test_where_no_gradient_is_wanted_torchs_own_run(monkeypatch):
    network = Transformer(TransformerConfig(vocab=30, layers=1, heads=2, width=16))
    for name in ("SwiGLU", "RMSNorm", "Attention"):
        monkeypatch.setattr(cpu, name, None)
    with torch.no_grad():
        network(torch.zeros(2, 4, dtype=torch.long), torch.arange(8))


def laid(*shape: int) -> torch.nn.Linear:
    layer = torch.nn.Linear(*shape).requires_grad_(False)
    cpu.lay_for_rows(layer)
    return layer


@pytest.mark.parametrize("way", cpu.WAYS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_row_product(threads: int, way: cpu.Way, monkeypatch: pytest.MonkeyPatch):
    """Each way, whichever this machine would take; one that lies right already stays where it is."""
    monkeypatch.setattr(cpu, "_fastest", lambda threads, wide: way)
    layer, x = laid(512, 768), torch.randn(512)
    assert cpu.by_inputs(layer.weight) == way.by_inputs
    place, before = layer.weight.data_ptr(), torch.get_num_threads()
    cpu.lay_for_rows(layer)
    assert layer.weight.data_ptr() == place
    try:
        torch.set_num_threads(threads)
        found = cpu.row_product(layer.weight)(x)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, F.linear(x, layer.weight), rtol=1e-5, atol=1e-5)


def test_what_is_trained_or_small_is_not_laid_anew():
    trained, double = torch.nn.Linear(512, 768), torch.nn.Linear(512, 768).double().requires_grad_(False)
    for layer in (trained, double, torch.nn.Linear(16, 16).requires_grad_(False)):
        place = layer.weight.data_ptr()
        cpu.lay_for_rows(layer)
        assert layer.weight.data_ptr() == place


def test_a_row_decoded_alone_is_the_row_decoded_among_others(monkeypatch: pytest.MonkeyPatch):
    """Matrices that one row reads by its inputs are really met, and the logits are those of the plain product."""
    network = Transformer(TransformerConfig(2048, 1, 4, 256, causal=True)).requires_grad_(False)
    tokens, at = torch.arange(6)[None], torch.tensor([5])
    plain = network(tokens, at)
    rows, row_product = [], cpu.row_product
    monkeypatch.setattr(cpu, "row_product", lambda weight: (rows.append(weight), row_product(weight))[1])
    one = network.cached(1, 6)
    one(tokens[:, :5], torch.tensor([4]))
    torch.testing.assert_close(one(tokens, at), plain, rtol=1e-4, atol=1e-5)
    assert {tuple(weight.shape) for weight in rows if cpu.by_inputs(weight)} == {(2048, 256), (256, 1024)}
