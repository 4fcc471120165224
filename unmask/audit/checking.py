"""Samples of a decoder against the law it states, on networks whose every probability is known.

Each comparison has a limit that a right decoder passes with chance 1 - RARE (beyond four standard deviations).
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from jaxtyping import Int
from scipy.stats import chi2, norm
from torch import Tensor

from unmask.audit.findings import Audit, Finding
from unmask.audit.laws import Canvas, IndependentLaw, Law, RatedLaw, follow
from unmask.audit.stated import UNSTATED, in_words, own_law, stated_law
from unmask.network import Network, evaluations
from unmask.sampling import Draw, Policy, sample
from unmask.world import InconsistentTable, JointTable, Wide
from unmask.wrappers import Counted

RARE = 1e-5  # 4.4 standard deviations
LENGTH = 4
WORLDS: Mapping[str, Network] = {
    "joint": JointTable(3, LENGTH, seed=2),
    "inconsistent": InconsistentTable(3, LENGTH, seed=9),  # any two laws of EVERY differ here by 0.067 and more
}
SCORES = {"score": InconsistentTable(3, LENGTH, seed=9, spread=1.0)}
"""For a law that looks at the sum of a prediction, which elsewhere is 1."""
WIDE = Wide()
LONG, SHORT = 128, 8  # lengths on the wide world, where every step is planned and where every position is asked


class Written(Protocol):
    """What a sampler gives back; `Samples` is one."""

    @property
    def tokens(self) -> Sequence[Int[Tensor, " L"]] | Int[Tensor, "S L"]:
        """The finished sequences."""
        ...

    @property
    def nfe(self) -> Int[Tensor, " S"]:
        """Evaluations of each sequence."""
        ...


class Sampler(Protocol):
    """Any sampler: what it writes depends on (seed, number of the sequence) alone, whatever `batch` it runs in."""

    def __call__(
        self, network: Network, canvases: Int[Tensor, "S L"], *, seed: int, sequences: Sequence[int], batch: int
    ) -> Written: ...


def audit(
    subject: Policy | Sampler,
    law: Law | None = None,
    *,
    worlds: Mapping[str, Network] | None = None,
    wide: Network | None = WIDE,
    draw: Draw | None = None,
    draws: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Compare a policy, or any sampler, with its law.

    `worlds` are small networks, on canvases of whose `length` the law is enumerated, by default those of
    `worlds_for`; `wide` has a large vocabulary and predicts the same everywhere. The laws of the package's policies
    are known. Without a law, a policy is held to the plans it draws and to its own choices row by row, and passes only
    if its `exact_for` says "no stated law"; a sampler to what every law asks: no mask left, given tokens kept,
    evaluations counted, rows that do not see each other. `draw` is how a policy's tokens are drawn, and how a sampler,
    which draws by itself, says it does. `progress` is told of findings. Raises ValueError for fewer than 1000 draws, a
    class in place of what it makes, and a sampler whose result is none.
    """
    if isinstance(subject, type):
        raise ValueError(f"{subject.__name__} is a class: audit one of it, {subject.__name__}(...)")
    if draws < 1000:
        raise ValueError(f"{draws} draws show little: take 1000 or more")
    draw = draw or Draw()
    policy = cast(Policy, subject) if hasattr(subject, "plan") else None
    run = cast(Sampler, subject if policy is None else partial(sample, policy=policy, draw=draw))
    stated = law or (None if policy is None else stated_law(policy))
    work: list[Callable[[], Finding]] = []
    for name, world in (worlds_for(stated) if worlds is None else worlds).items():
        laws = _laws(policy, stated, world.mask_id, seed)
        for words, canvases in _canvases(world).items():
            where = f"{name}, {words}"
            work.append(partial(_on_canvases, run, where, world, canvases, laws, draw, draws, seed))
        work.append(partial(_on_every_canvas, run, name, world, seed))
    if wide is not None:
        work.append(partial(_on_the_wide, run, wide, policy, stated, draw, draws // 5, seed))
    findings = []
    for each in work:
        findings.append(each())
        if progress is not None:
            progress(len(findings), len(work))
    if policy is not None and stated is None and UNSTATED not in policy.exact_for:
        findings.append(Finding("the stated law", faults=(f'not checked: give `law`, or state "{UNSTATED}"',)))
    name = repr(subject) if policy is not None else getattr(subject, "__name__", repr(subject))
    return Audit(name, in_words(policy, law, stated, draw), tuple(findings))


def worlds_for(law: Law | None) -> Mapping[str, Network]:
    """The worlds on which a law is told from others."""
    return {**WORLDS, **SCORES} if isinstance(law, RatedLaw) else WORLDS


@dataclass(frozen=True)
class Run:
    """What a sampler wrote, and what is wrong with it under any law."""

    tokens: Int[Tensor, "S L"]
    nfe: Int[Tensor, " S"]
    """Evaluations, as the sampler says."""
    ran: float
    """Rows that the network ran, a sequence."""
    faults: tuple[str, ...]

    def off(self, mean: float) -> float:
        """How far the NFE is from its mean, as the sampler counts it or as the network ran, whichever is farther."""
        return max(abs(self.ran - mean), abs(float(self.nfe.double().mean()) - mean))


def _run(
    run: Sampler, network: Network, canvases: Int[Tensor, "S L"], seed: int, sequences: Sequence[int], batch: int
) -> Run:
    counted = Counted(network)
    written = run(cast(Network, counted), canvases.clone(), seed=seed, sequences=sequences, batch=batch)
    tokens, nfe = _read(written, canvases)
    open_ = canvases == network.mask_id
    unfinished = int((open_ & ((tokens < 0) | (tokens >= network.vocab))).any(-1).sum())
    overwritten = int((~open_ & (tokens != canvases)).any(-1).sum())
    faults = []
    if unfinished:
        faults.append(f"{unfinished} of {len(tokens)} sequences with a mask left")
    if overwritten:
        faults.append(f"given tokens changed in {overwritten} of {len(tokens)} sequences")
    ran = counted.ran / len(tokens)
    if int(nfe.sum()) != counted.ran:
        faults.append(f"says NFE {float(nfe.sum()) / len(tokens):.3f} a sequence, the network ran {ran:.3f}")
    return Run(tokens, nfe, ran, tuple(faults))


def _read(written: Written, canvases: Int[Tensor, "S L"]) -> tuple[Int[Tensor, "S L"], Int[Tensor, " S"]]:
    """(tokens, nfe) of what a sampler gave back, which may be anything."""
    with suppress(AttributeError, TypeError, ValueError, RuntimeError):
        tokens, nfe = torch.stack(list(written.tokens)).cpu(), torch.as_tensor(written.nfe).cpu()
        shapes = tokens.shape == canvases.shape and nfe.shape == tokens.shape[:1]
        if shapes and not any(part.is_floating_point() or part.dtype == torch.bool for part in (tokens, nfe)):
            return tokens, nfe
    count, length = canvases.shape
    raise ValueError(
        f"the sampler gave a {type(written).__name__} back that is no result: its `tokens` must be {count} rows of "
        f"{length} ids, its `nfe` {count} whole numbers"
    )


def _on_canvases(
    run: Sampler,
    name: str,
    world: Network,
    canvases: Sequence[Canvas],
    laws: Callable[[Canvas, Sequence[int]], Law] | None,
    draw: Draw,
    draws: int,
    seed: int,
) -> Finding:
    """The same canvases in turn, many times: the law of the sequences and of the number of evaluations on each."""
    rows = torch.tensor(canvases).repeat(-(-draws // len(canvases)), 1)[:draws]
    got = _run(run, world, rows, seed, range(draws), 500)
    faults = list(got.faults)
    if laws is None:
        return Finding(name, nfe=got.ran, faults=got.faults)
    sequences, counted, mean, variance, most = {}, True, 0.0, 0.0, 0
    for i, canvas in enumerate(canvases):
        turn = range(i, draws, len(canvases))
        law = laws(canvas, turn)
        truth = follow(law, world, canvas, draw)
        share = len(turn) / draws
        sequences |= {(i, x): share * p for x, p in truth.sequences.items()}
        mean, variance, most = mean + share * truth.nfe, variance + share * truth.variance, max(most, truth.most)
        counted &= getattr(law, "counts", True)
    which = [i % len(canvases) for i in range(draws)]
    counts = Counter(zip(which, map(tuple, got.tokens.tolist()), strict=True))
    distance, limit = total_variation(counts, sequences)
    chance = chi_square(counts, sequences)
    if distance > limit:
        faults.append("total variation beyond its limit")
    if chance < RARE:
        faults.append(f"sequences: chi-square p = {chance:.1g}")
    if not counted:
        return Finding(name, distance, limit, chance, got.ran, None, tuple(faults))
    if got.off(mean) > mean_limit(variance, most, draws):
        faults.append("NFE beyond its limit")
    return Finding(name, distance, limit, chance, got.ran, mean, tuple(faults))


def _on_every_canvas(run: Sampler, name: str, world: Network, seed: int) -> Finding:
    """Every canvas of a world once, in one batch, in small ones of another order, and some of them alone."""
    ids = [*range(world.vocab), world.mask_id]
    canvases = torch.tensor([row for row in itertools.product(ids, repeat=_length(world)) if world.mask_id in row])
    numbers = list(range(len(canvases)))
    whole = _run(run, world, canvases, seed, numbers, len(canvases))
    differ = set()
    for mine, batch in ((numbers[::-1], 7), *(([i], 1) for i in numbers[::8])):
        again = _run(run, world, canvases[mine], seed, mine, batch)
        other = (again.tokens != whole.tokens[mine]).any(-1) | (again.nfe != whole.nfe[mine])
        differ |= {i for i, changed in zip(mine, other.tolist(), strict=True) if changed}
    coupled = [f"{len(differ)} of {len(canvases)} sequences change with their batch"] if differ else []
    return Finding(f"{name}, every canvas", faults=(*whole.faults, *coupled))


def _on_the_wide(
    run: Sampler, wide: Network, policy: Policy | None, law: Law | None, draw: Draw, work: int, seed: int
) -> Finding:
    """Many tokens of small probability: which of them are drawn, and when."""
    cost = getattr(law, "cost", None)
    length = SHORT if cost is None else LONG
    count = max(4, work // (length if cost else length * (length + 1) // 2))
    got = _run(run, wide, torch.full((count, length), wide.mask_id), seed, range(count), 16)
    faults = list(got.faults)
    chance = _bins(wide, draw, got.tokens[(got.tokens >= 0) & (got.tokens < wide.vocab)])
    if chance < RARE:
        faults.append(f"tokens: chi-square p = {chance:.1g}")
    if policy is not None and isinstance(law, IndependentLaw):
        when = _steps(policy, law, seed)
        if when < RARE:
            faults.append(f"steps of the plan: chi-square p = {when:.1g}")
    stated = None
    if cost is not None:
        each, (mean, variance) = evaluations(wide), cost(length)
        stated = each * mean
        if got.off(stated) > norm.isf(RARE / 2) * each * math.sqrt(variance / count) + 1e-9:  # a sum of many
            faults.append("NFE beyond its limit")
    return Finding(f"wide, {wide.vocab} tokens", chance=chance, nfe=got.ran, stated=stated, faults=tuple(faults))


def _bins(wide: Network, draw: Draw, tokens: Int[Tensor, " N"]) -> float:
    """The smallest p-value of tokens binned by their ids' high digits, low digits, and by their probability."""
    logits = cast(Tensor, wide(torch.tensor([[wide.mask_id]]), torch.tensor([0])))
    p = draw.law(logits)[0].cpu()
    ids, counts = torch.arange(len(p)), torch.bincount(tokens, minlength=len(p)).double()
    levels = p.clamp(min=1e-300).log2().round().long()
    chances = []
    for label in (ids * 20 // len(p), ids % 16, levels - levels.min()):
        expected, seen = (torch.bincount(label, weights=weights).tolist() for weights in (p, counts))
        chances.append(chi_square(Counter(dict(enumerate(map(int, seen)))), dict(enumerate(expected))))
    return min(chances)


def _steps(policy: Policy, law: IndependentLaw, seed: int, positions: int = 200_000) -> float:
    """p-value of the steps at which a policy's plan reveals, the empty ones in between counted."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(100, positions // 100, generator=generator, dtype=torch.float64)
    steps = policy.plan(torch.ones_like(u, dtype=torch.bool), u)
    return chi_square(Counter(steps.flatten().tolist()), dict(enumerate(law.shares())))


def mean_limit(variance: float, most: float, count: int) -> float:
    """What the mean of `count` values within [0, most] is off by with chance RARE at most (Bernstein's inequality)."""
    if variance < 1e-12:
        return 1e-9
    log = math.log(2 / RARE)
    return math.sqrt(2 * variance * log / count) + most * log / (3 * count)


def total_variation(counts: Counter, law: Mapping[Any, float]) -> tuple[float, float]:
    """(distance of the counted samples from their law, what it exceeds with chance RARE).

    E[TV] <= 1/2 sum sqrt(p (1 - p) / N), and by McDiarmid TV exceeds its mean by t with chance below exp(-2 N t^2).
    """
    total = counts.total()
    distance = sum(abs(counts[x] / total - law.get(x, 0.0)) for x in counts.keys() | law.keys()) / 2
    mean = sum(math.sqrt(max(p * (1 - p), 0.0)) for p in law.values()) / (2 * math.sqrt(total))
    return distance, mean + math.sqrt(math.log(1 / RARE) / (2 * total))


def chi_square(counts: Counter, law: Mapping[Any, float]) -> float:
    """Pearson's p-value; the rarest cells are merged until they expect 5. 0 if the impossible was seen."""
    if any(seen and not law.get(x) for x, seen in counts.items()):
        return 0.0
    total, groups, expect, seen = counts.total(), [], 0.0, 0
    for p, x in sorted(((p, x) for x, p in law.items()), key=lambda cell: cell[0]):
        expect, seen = expect + p * total, seen + counts[x]
        if expect >= 5:
            groups.append((expect, seen))
            expect, seen = 0.0, 0
    if len(groups) < 2:
        return 1.0
    groups[-1] = (groups[-1][0] + expect, groups[-1][1] + seen)
    statistic = sum((seen - expect) ** 2 / expect for expect, seen in groups)
    return float(chi2.sf(statistic, len(groups) - 1))


def _length(world: Any) -> int:
    """Positions of a world, also of a wrapped one."""
    while not hasattr(world, "length") and hasattr(world, "network"):
        world = world.network
    return getattr(world, "length", LENGTH)


def _canvases(world: Network) -> dict[str, list[Canvas]]:
    """All open, and every canvas with one token given."""
    length = _length(world)
    free = [(world.mask_id,) * length]
    given = [(*free[0][:i], v, *free[0][i + 1 :]) for i in range(length) for v in range(world.vocab)]
    return {"free": free, "one given": given}


def _laws(
    policy: Policy | None, stated: Law | None, mask_id: int, seed: int
) -> Callable[[Canvas, Sequence[int]], Law] | None:
    """(canvas, sequence numbers) -> the law they are held to."""
    if stated is not None:
        return lambda canvas, numbers: stated
    return None if policy is None else lambda canvas, numbers: own_law(policy, canvas, mask_id, seed, numbers)
