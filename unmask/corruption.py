"""The forward process: how much is masked at a time t, and which positions.

alpha(t) is the probability that a token is still clean at time t in [0, 1]; it falls from about 1 to about 0
(RADD, arXiv 2406.03736, section 2; in its notation sigma_bar = -log alpha).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LogLinear:
    """alpha(t) = 1 - (1 - eps) t: tokens are masked at a constant rate. The published default, eps 1e-3."""

    eps: float = 1e-3
    """Share of tokens still clean at time 1."""

    def __post_init__(self) -> None:
        _require(0 <= self.eps < 1, f"LogLinear(eps={self.eps}): eps must be in [0, 1)")

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Probability that a token is clean at time t."""
        return 1 - (1 - self.eps) * t


@dataclass(frozen=True)
class Geometric:
    """sigma_bar(t) = sigma_min^(1-t) sigma_max^t and alpha = exp(-sigma_bar) (SEDD's and RADD's second schedule)."""

    sigma_min: float = 1e-4
    """Total noise at time 0."""
    sigma_max: float = 20.0
    """Total noise at time 1."""

    def __post_init__(self) -> None:
        _require(
            0 < self.sigma_min < self.sigma_max,
            f"Geometric(sigma_min={self.sigma_min}, sigma_max={self.sigma_max}): need 0 < sigma_min < sigma_max",
        )

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Probability that a token is clean at time t."""
        return torch.exp(-self.sigma_min * (self.sigma_max / self.sigma_min) ** t)


@dataclass(frozen=True)
class Cosine:
    """alpha(t) = 1 - (1 - eps) (1 - cos(pi t / 2)): slow near t = 0, where the text is almost whole."""

    eps: float = 1e-3
    """Share of tokens still clean at time 1."""

    def __post_init__(self) -> None:
        _require(0 <= self.eps < 1, f"Cosine(eps={self.eps}): eps must be in [0, 1)")

    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Probability that a token is clean at time t."""
        return self.eps + (1 - self.eps) * torch.cos(math.pi / 2 * t)


Schedule = LogLinear | Geometric | Cosine


def rate(schedule: Schedule, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """-d alpha / dt at time t, in probability per unit of time: the derivative of what `alpha` computes, by torch.

    (RADD's and SEDD's rate sigma(t) is this over alpha.)
    """
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    return -slope


def require_falling(schedule: Schedule) -> None:
    """Raises ValueError for an alpha that is no probability, or rises somewhere between time 0 and 1."""
    alpha = schedule.alpha(torch.linspace(0, 1, 257, dtype=torch.float64))
    slack = 1e-9  # of rounding
    falls = bool((alpha.diff() <= slack).all() and alpha[-1] >= -slack and 1 + slack >= alpha[0] > alpha[-1] + slack)
    _require(falls, f"{schedule}: alpha(t), the probability of a clean token, must fall from at most 1 to at least 0")


def masking_law(schedule: Schedule, t: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    """(lambda, d lambda / dt) at time t, with alpha rescaled to run from exactly 1 to exactly 0.

    lambda = 1 - (alpha(t) - alpha(1)) / (alpha(0) - alpha(1)) is the probability of a mask. Without the rescaling
    the range outside the end points is missing from every integral over t, and the four losses differ by it
    (docs/theory.md).
    """
    ends = schedule.alpha(torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
    span = ends[0] - ends[1]
    return (ends[0] - schedule.alpha(t)) / span, rate(schedule, t) / span


def stratified(count: int, offset: Float[Tensor, "..."]) -> Float[Tensor, "... count"]:
    """`count` levels in [0, 1), one in each stratum of width 1/count: (i + offset) / count, for offsets in [0, 1)."""
    strata = torch.arange(count, dtype=offset.dtype, device=offset.device)
    # (count - 1 + offset) / count may round up to one
    return ((strata + offset[..., None]) / count).clamp(max=1 - torch.finfo(offset.dtype).eps / 2)


def antithetic(count: int, u: Float[Tensor, "... half"]) -> Float[Tensor, "... count"]:
    """`count` levels in [0, 1), ascending but for pairs: two in each stratum of width 2/count, mirrored in its middle.

    (2 j + 2 u) / count and (2 j + 2 - 2 u) / count, j = 0, 1, ...; an odd last one has a stratum of width 1/count.
    Each is uniform in its stratum, and what is linear there cancels: the error of a smooth integrand falls as
    count^-5/2, that of one level a stratum as count^-3/2, and that of one offset for all strata as 1/count. `u` are
    (count + 1) // 2 uniforms.
    """
    strata = 2 * torch.arange(u.shape[-1], dtype=u.dtype, device=u.device)
    width = torch.full_like(strata, 2.0)
    width[count // 2 :] = 1.0
    pairs = torch.stack([strata + width * u, strata + 2 - 2 * u], -1).flatten(-2)[..., :count]
    # u = 0 mirrors to the stratum's end, and the last stratum's end is one
    return (pairs / count).clamp(max=1 - torch.finfo(u.dtype).eps / 2)


def mask_each(
    maskable: Bool[Tensor, "B L"], probability: Float[Tensor, " B"], noise: Float[Tensor, "B L"]
) -> Bool[Tensor, "B L"]:
    """Mask each maskable position independently with its row's probability; `noise` are uniforms in [0, 1)."""
    return maskable & (noise < probability[:, None])


def mask_exactly(
    maskable: Bool[Tensor, "B L"], k: Int[Tensor, " B"], noise: Float[Tensor, "B L"]
) -> Bool[Tensor, "B L"]:
    """Mask exactly k maskable positions of each row, every subset equally likely; needs 0 <= k <= maskable count."""
    return maskable & (order_of(maskable, noise) < k[:, None])


def order_of(chosen: Bool[Tensor, "B L"], noise: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Rank of each chosen position by its noise, 0 first; those not chosen come after all chosen ones."""
    return noise.masked_fill(~chosen, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)


def _require(truth: bool, message: str) -> None:
    if not truth:
        raise ValueError(message)
