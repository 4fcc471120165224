"""The output layer and its cross entropy as one function with a gradient of its own: logits never exist all at once.

The loss is sum_n w_n (lse_n - z_n[target]) with z = h W' + b and lse = logsumexp z. It is linear in the weights w_n,
which are known beforehand, so that its gradients

    dh_n = w_n (p_n - onehot_n) W,    dW = sum_n w_n (p_n - onehot_n)' h_n,    db = sum_n w_n (p_n - onehot_n)

with p_n = softmax z_n are formed in the forward pass while a part of p exists: three matrix products, where computing
z again in the backward pass would take four. What comes from above multiplies them, if it is one number for all rows
as in training; else they are computed again.

p is computed for some positions and, of those, for some tokens at a time, so that on a CPU a block stays in the cache
from product to product. A block's softmax is the whole one's but for a factor a row, exp(lse of the block - lse), which
goes into the small matrices: one exponential an element. The target's own p - 1 stays in float32, where it cancels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from unmask.cpu import times
from unmask.draws import sent, widest
from unmask.network import Nats

HELD, BLOCK = 1 << 25, 1 << 22  # elements of p held on a CPU, and of one block: 16 MB in float32
HELD_ELSEWHERE = 1 << 27  # in one block


def row_nats(
    state: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    ids: Int[Tensor, " N"],
    then: Nats,
    banned: int | None = None,
) -> Float[Tensor, "1 B"]:
    """`then`, of a Target of `ids`, of the logits state weight' + bias with column `banned` -inf; differentiable.

    Products are in the precision of autocast, or of state and weight; softmax and sums in float32 or wider.
    """
    device = state.device
    ids, row = sent(ids, device), sent(then.row, device)
    weights = sent(then.weight, device, widest(device))
    return _RowNats.apply(state, weight, bias, ids, weights, row, then.rows, banned)


class _RowNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        state, weight, bias, ids, weights, row, rows, ctx.banned = inputs
        ctx.dtype = torch.promote_types(state.dtype, weight.dtype)
        if torch.is_autocast_enabled(state.device.type) and ctx.dtype != torch.float64:
            ctx.dtype = torch.get_autocast_dtype(state.device.type)
        ctx.save_for_backward(state, weight, bias, ids, weights, row)
        log_q, ctx.gradients = _read(state, weight, bias, ids, weights, ctx.banned, ctx.dtype, ctx.needs_input_grad)
        return weights.new_zeros(1, rows).index_add(1, row, -(log_q.to(weights.dtype) * weights)[None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore
        (above,) = grad_outputs
        state, weight, bias, ids, weights, row = ctx.saved_tensors
        found, ctx.gradients = ctx.gradients, None  # given away: a second backward pass computes them again
        if found is not None and _uniform(above):
            found = [None if g is None else g.mul_(above[0, 0].to(g.dtype)) for g in found]
        else:
            again = weights * above[0, row]
            found = _read(state, weight, bias, ids, again, ctx.banned, ctx.dtype, ctx.needs_input_grad)[1]
        cast = [None if g is None else g.to(x.dtype) for g, x in zip(found, (state, weight, bias), strict=True)]
        return (*cast, None, None, None, None, None)


def _uniform(above: Float[Tensor, "1 B"]) -> bool:
    """Whether it is one number for all rows: known without waiting for a GPU where it is the gradient of a sum."""
    expanded = above.shape[1] == 1 or above.stride(1) == 0
    return expanded or (above.device.type == "cpu" and bool((above == above[:, :1]).all()))


Gradients = tuple[Float[Tensor, "N D"], Float[Tensor, "V D"] | None, Float[Tensor, " V"] | None]


def _read(
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    weights: Tensor,
    banned: int | None,
    dtype: torch.dtype,
    trained: Sequence[bool],
) -> tuple[Float[Tensor, " N"], Gradients]:
    """log q(target), and the gradients of -sum(weights * log q) by state and, where `trained` says so, by weight (its
    second) and bias (its third).
    """
    count, vocab, on_host = len(state), len(weight), state.device.type == "cpu"
    wide = torch.promote_types(dtype, torch.float32)
    held = max(1, (HELD if on_host else HELD_ELSEWHERE) // vocab)
    pieces = max(1, -(-vocab * min(count, held) // BLOCK)) if on_host else 1
    blocks = [slice(vocab * i // pieces, vocab * (i + 1) // pieces) for i in range(pieces)]
    log_q, d_state = state.new_empty(count, dtype=wide), torch.empty_like(state, dtype=wide)
    d_weight = torch.zeros_like(weight, dtype=wide) if trained[1] else None
    d_bias = None if bias is None or not trained[2] else torch.zeros_like(bias, dtype=wide)
    with torch.autocast(state.device.type, enabled=False):
        narrow = weight.to(dtype)
        for start in range(0, count, held):
            some = slice(start, start + held)
            h, target, scale = state[some].to(dtype), ids[some], weights[some].to(wide)
            parts = [_block(h, narrow, bias, target, tokens, banned) for tokens in blocks]
            lse = torch.stack([part.lse for part in parts]).logsumexp(0)
            log_q[some] = torch.stack([part.target for part in parts]).sum(0) - lse
            own = scale * log_q[some].expm1()  # w (p - 1) of the target
            d_state[some] = own[:, None] * weight[target]
            if d_weight is not None:
                d_weight.index_add_(0, target, own[:, None] * state[some].to(wide))
            if d_bias is not None:
                d_bias.index_add_(0, target, own)
            for part in parts:
                share = scale * (part.lse - lse).exp()
                d_state[some].addcmul_(part.state.to(wide), share[:, None])
                if d_weight is not None:
                    d_weight[part.tokens] += times(part.softmax.t(), (h * share[:, None]).to(dtype).t())
                if d_bias is not None:
                    d_bias[part.tokens] += share.to(dtype) @ part.softmax
    return log_q, (d_state, d_weight, d_bias)


class _Block(NamedTuple):
    """The softmax of some positions over some tokens."""

    tokens: slice
    softmax: Float[Tensor, "n v"]
    """0 at the target."""
    lse: Float[Tensor, " n"]
    target: Float[Tensor, " n"]
    """The target's logit, where it is one of these tokens, else 0."""
    state: Float[Tensor, "n D"]
    """softmax W."""


def _block(h: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, tokens: slice, banned: int | None) -> _Block:
    w = weight[tokens]
    z = times(h, w)
    z = z if z.dtype == torch.float64 else z.float()
    if bias is not None:
        z += bias[tokens]
    if banned is not None and tokens.start <= banned < tokens.stop:
        z[:, banned - tokens.start] = -torch.inf
    column = (ids - tokens.start).clamp(0, len(w) - 1)[:, None]
    inside = ((tokens.start <= ids) & (ids < tokens.stop))[:, None]
    target = torch.where(inside, z.gather(1, column), 0.0).squeeze(1)
    top = z.amax(1)
    p = torch.softmax(z, 1, out=z)
    lse = top - p.amax(1).log()
    p.scatter_(1, column, torch.where(inside, 0.0, p.gather(1, column)))
    p = p.to(h.dtype)
    return _Block(tokens, p, lse, target, times(p, w.t()))
