"""What a CPU does faster by hand: float32 products by oneDNN, functions with their gradients written down for
training, one row times a matrix by the faster of two ways for decoding.

torch's own are right for a GPU, where a compiler fuses them, and where no gradient is wanted. Times are of one thread
of an EPYC 9005, a batch of 8 x 256 positions of width 256, forward and backward.
"""

import ctypes
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
LARGE = 1 << 18  # entries of a weight beyond which reading it is what a product of few rows takes
SCORES = 1 << 20  # of attention, held at once: 4 MB in float32
LONGEST = 1 << 24  # scores of one group of heads beyond which torch's attention, which holds none, is taken
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers of what `mallopt` sets
TURNS = 20  # of a few milliseconds, when ways are timed
SUM = 0  # of what lies in a bag, in torch's numbers


@cache
def keep_freed() -> None:
    """Have the C library keep freed memory for the next tensor, but for tensors beyond 32 MB and 2 GB in all.

    glibc gives it back to the system and asks for it again, page by page, at every product: a tenth to a fifth of a
    small network's time (benchmarks/memory.py).
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(MMAP_THRESHOLD, 32 << 20)
        mallopt(TRIM_THRESHOLD, (1 << 31) - 1)


def by_hand(x: Tensor) -> bool:
    """Whether the functions of this module are for x: a gradient is wanted, on a CPU, and no compiler is at work."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()


def attends(qkv: Float[Tensor, "B L F"], queries: int) -> bool:
    """Whether `Attention`, of so many queries a key, is for it: in bfloat16 it is faster than torch's, in float32 not
    (benchmarks/attention.py).
    """
    return by_hand(qkv) and qkv.dtype == torch.bfloat16 and qkv.shape[1] ** 2 * queries <= LONGEST


def times(x: Float[Tensor, "n D"], y: Float[Tensor, "m D"]) -> Float[Tensor, "n m"]:
    """x y', without a gradient; in float32 on a CPU by oneDNN.

    torch leaves float32 to MKL, which takes about twice as long on an AMD processor (benchmarks/products.py).
    """
    if ONEDNN and x.device.type == "cpu" and x.dtype == y.dtype == torch.float32 and x.numel() and y.numel():
        return torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
    return x @ y.t()


def linear(
    x: Float[Tensor, "*B D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, " E"] | None
) -> Float[Tensor, "*B E"]:
    """x weight' + bias, in training; large float32 products, the gradients' too, by `times`."""
    small = weight.numel() < 1 << 14 or x.numel() < 1 << 14
    if small or not x.dtype == weight.dtype == torch.float32 or torch.is_autocast_enabled("cpu") or not by_hand(x):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


def lay_for_rows(layer: nn.Linear) -> None:
    """Lay the weight out in memory as `row_product` reads it fastest; its shape and values stay.

    Only a large one of float32 on a CPU, that no training needs: how it lies there would change its last bits.
    """
    weight = layer.weight
    plain = weight.requires_grad or weight.device.type != "cpu" or weight.dtype != torch.float32
    if plain or weight.numel() < LARGE or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return
    turned = _way(weight).by_inputs
    weight.data = weight.t().contiguous().t() if turned else weight.contiguous()


def by_inputs(weight: Float[Tensor, "E D"]) -> bool:
    """Whether the weights of one input lie side by side, as `lay_for_rows` may lay them."""
    return weight.stride() == (1, weight.shape[0]) and weight.numel() >= LARGE


Product = Callable[[Float[Tensor, " D"]], Float[Tensor, " E"]]


def row_product(weight: Float[Tensor, "E D"]) -> Product:
    """x -> weight x without a gradient, as fast as torch reads memory where `lay_for_rows` was."""
    way = _way(weight) if weight.numel() >= LARGE and weight.dtype == torch.float32 else None
    return weight.mv if way is None or way.by_inputs != by_inputs(weight) else way.product(weight)


class Way(NamedTuple):
    """How a matrix lies, and the product of one that lies so."""

    by_inputs: bool
    product: Callable[[Float[Tensor, "E D"]], Product]


def _way(weight: Float[Tensor, "E D"]) -> Way:
    return _fastest(torch.get_num_threads(), weight.shape[0] >= weight.shape[1])


@cache
def _fastest(threads: int, wide: bool) -> Way:
    """The fastest way on this machine of matrices that have more outputs than inputs, or fewer: timed once, with 64 MB,
    which no cache holds.
    """
    outputs, inputs = (4096, 1024) if wide else (1024, 4096)
    memory, x = torch.ones(4, outputs * inputs), torch.ones(inputs)

    def run(way: Way) -> Callable[[], object]:
        shape = (inputs, outputs) if way.by_inputs else (outputs, inputs)
        products = [way.product(part.view(shape).t() if way.by_inputs else part.view(shape)) for part in memory]
        return lambda: [product(x) for product in products]

    seconds = best_of_turns(*map(run, WAYS), turns=6)
    return WAYS[seconds.index(min(seconds))]


def best_of_turns(*ways: Callable[[], object], turns: int = TURNS) -> list[float]:
    """Seconds of each way in its best turn, which is undisturbed: other work on the machine comes and goes."""
    best = [math.inf] * len(ways)
    for _, (i, way) in itertools.product(range(turns), enumerate(ways)):
        start = time.perf_counter()
        way()
        best[i] = min(best[i], time.perf_counter() - start)
    return best


@cache
def _columns(inputs: int, shares: int) -> tuple[Tensor, Tensor]:
    """Rows of the table that each share of the outputs adds up, one share behind the other, and where each begins."""
    columns = torch.arange(inputs * shares).view(inputs, shares).t().reshape(-1)
    return columns, torch.arange(0, inputs * shares, inputs)


def _summed(weight: Float[Tensor, "E D"]) -> Product:
    """x -> weight x by `embedding_bag`, of a weight that lies by its inputs; a thread takes a share of the outputs."""
    (outputs, inputs), threads = weight.shape, torch.get_num_threads()
    shares = math.gcd(threads, outputs)
    columns, begins = _columns(inputs, shares)
    table = weight.t().view(inputs * shares, outputs // shares)

    def product(x: Tensor) -> Tensor:
        return summed(table, columns, begins, x if shares == 1 else x.repeat(shares)).view(-1)

    return product


def summed(
    table: Float[Tensor, "n D"], rows: Int[Tensor, " m"], begins: Int[Tensor, " b"], scales: Float[Tensor, " m"]
) -> Float[Tensor, "b D"]:
    """Sums of rows of a table, each times its scale: of those from each beginning on. As fast as memory is read."""
    return torch.embedding_bag(table, rows, begins, False, SUM, False, scales)[0]


WAYS = [
    Way(True, lambda weight: weight.mv),
    Way(True, _summed),
    Way(False, lambda weight: lambda x: times(x[None], weight)[0]),
]
"""BLAS's, by inputs; `_summed`, which on one machine reads memory at twice the speed of BLAS and on another at half;
oneDNN's, by outputs, often the best one where these are few: the longer what lies side by side, the faster it is read
(benchmarks/products.py)."""


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        y = times(x.reshape(-1, x.shape[-1]), weight)
        return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore
        x, weight = ctx.saved_tensors
        above = grad_outputs[0].reshape(-1, weight.shape[0])
        d_x = times(above, weight.t()).view(x.shape) if ctx.needs_input_grad[0] else None
        d_weight = times(above.t(), x.reshape(-1, x.shape[-1]).t()) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, above.sum(0) if ctx.needs_input_grad[2] else None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up of their concatenation, which is all that is kept."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        (gate_up,) = inputs
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore
        (above,), (gate_up,) = grad_outputs, ctx.saved_tensors
        found = torch.empty_like(gate_up)
        (gate, up), (d_gate, d_up) = gate_up.chunk(2, -1), found.chunk(2, -1)
        torch.mul(above, F.silu(gate), out=d_up)
        torch.ops.aten.silu_backward.grad_input(above * up, gate, grad_input=d_gate)
        return found


def rms_norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*B D"]:
    """x / sqrt(mean x^2 + eps) * weight without a gradient, in as few steps as there are: for one row they are what it
    takes.
    """
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * torch.addcmul(_number(eps), size, size, value=1 / x.shape[-1]).rsqrt_()).mul_(weight)


@cache
def _number(value: float) -> Tensor:
    """Without dimensions, it takes the precision of what it meets."""
    return torch.tensor(value, dtype=torch.float64)


class RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight; under autocast already in the precision that the next product takes."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, eps = inputs
        wide = x if x.dtype == torch.float64 else x.float()
        scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
        return (wide * scale).mul_(weight).to(torch.get_autocast_dtype("cpu") if autocast else x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore
        x, weight, scale = ctx.saved_tensors
        above = grad_outputs[0].to(scale.dtype)
        unit = x * scale
        d_weight = (above * unit).flatten(0, -2).sum(0)
        d_unit = above * weight
        d_x = d_unit.addcmul_(unit, (d_unit * unit).mean(-1, keepdim=True), value=-1).mul_(scale)
        return d_x.to(x.dtype), d_weight.to(weight.dtype), None


class Attention(torch.autograd.Function):
    """softmax(rotate(q) rotate(k)' / sqrt d) v of the fused qkv [B, L, (H + 2G) d], in its precision.

    Over what is `seen` [B, 1, L, L], where it is given; or, if `causal`, over what is not to the right; or over all.

    Scores are computed again in the backward pass, some heads at a time. The heads of a group lie one after the other
    along the length, so that grouped queries need no copies of keys and values.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        qkv, cos, sin, heads, groups, causal, seen = inputs
        ctx.sizes = qkv.shape[0], qkv.shape[1], heads, groups, qkv.shape[2] // (heads + 2 * groups)
        batch, length, heads, groups, width = ctx.sizes
        with torch.autocast("cpu", enabled=False):
            parts = qkv.view(batch, length, -1, width).transpose(1, 2)
            turned = _turn(parts[:, : heads + groups], cos, sin)
            turned[:, :heads] *= width**-0.5
            q = turned[:, :heads].to(qkv.dtype).reshape(batch * groups, -1, width)
            k = turned[:, heads:].to(qkv.dtype).reshape(batch * groups, -1, width)
            v = parts[:, heads + groups :].reshape(batch * groups, -1, width)
            unseen = ~seen[:, 0] if seen is not None else _later(length)[None] if causal else None
            ctx.save_for_backward(q, k, v, cos, sin, unseen)
            out = torch.empty_like(q)
            for some in _some(q, k):
                out[some] = _softmax(q, k, some, unseen) @ v[some]
        return out.view(batch, heads, length, width).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore
        q, k, v, cos, sin, unseen = ctx.saved_tensors
        batch, length, heads, groups, width = ctx.sizes
        above = grad_outputs[0].view(batch, length, heads, width).transpose(1, 2).reshape(q.shape)
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for some in _some(q, k):
            p = _softmax(q, k, some, unseen)
            d_v[some] = p.mT @ above[some]
            d_s = above[some] @ v[some].mT
            torch.ops.aten._softmax_backward_data.out(d_s, p, -1, p.dtype, grad_input=d_s)
            d_q[some] = d_s @ k[some]
            d_k[some] = d_s.mT @ q[some]
        found = torch.empty(batch, length, heads + 2 * groups, width, dtype=q.dtype)
        parts = found.transpose(1, 2)
        parts[:, :heads] = _turn(d_q.view(batch, heads, length, width), cos, -sin).mul_(width**-0.5)
        parts[:, heads : heads + groups] = _turn(d_k.view(batch, groups, length, width), cos, -sin)
        parts[:, heads + groups :] = d_v.view(batch, groups, length, width)
        return found.flatten(2), None, None, None, None, None, None


def _turn(
    x: Float[Tensor, "B H L d"], cos: Float[Tensor, "L 1 d"], sin: Float[Tensor, "L 1 d"]
) -> Float[Tensor, "B H L d"]:
    """x cos + roll(x, d / 2) sin, in float32 or wider; its transpose is the same with -sin."""
    half, cos, sin = x.shape[-1] // 2, cos[:, 0], sin[:, 0]
    wide = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)).copy_(x)
    cos, sin = cos.to(wide.dtype), sin.to(wide.dtype)
    out = wide * cos
    out[..., :half].addcmul_(wide[..., half:], sin[:, :half])
    out[..., half:].addcmul_(wide[..., :half], sin[:, half:])
    return out


def _some(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Heads whose scores are held at once."""
    step = max(1, SCORES // max(1, q.shape[1] * k.shape[1]))
    return (slice(start, min(len(q), start + step)) for start in range(0, len(q), step))


def _later(length: int) -> Bool[Tensor, "L L"]:
    """What is to the right."""
    return torch.ones(length, length, dtype=torch.bool).triu_(1)


def _softmax(q: Tensor, k: Tensor, some: slice, unseen: Bool[Tensor, "B L L"] | None) -> Tensor:
    scores = q[some] @ k[some].mT
    if unseen is not None:
        if len(unseen) > 1:  # a sequence each
            unseen = unseen[torch.arange(some.start, some.stop) // (len(k) // len(unseen))]
        scores.unflatten(1, (-1, k.shape[1])).masked_fill_(unseen[:, None], -torch.inf)
    return torch.softmax(scores, -1, out=scores)
