"""Log-probabilities of many answers of different lengths: full calls, and no padding.

Bidirectional attention would see a padded position. So answers of equal length go through the network together: a
Monte-Carlo estimate has many maskings of each and a chain rule many steps, which fills the calls all the same
(benchmarks/harness.py).
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask import ranks
from unmask.data import Tokenizer
from unmask.draws import log_probabilities
from unmask.files import is_number
from unmask.likelihood import log_likelihood, ordered_log_likelihood
from unmask.network import Network, Target
from unmask.sampling import Confidence, LeftToRight, draw_plan
from unmask.wrappers import Guided

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
EstimatorName = Literal["bound", "chain"]


@dataclass(frozen=True)
class Answer:
    """Begin token, context and answer as tokens, of which the last `scored` are the answer."""

    tokens: Sequence[int]
    scored: int
    number: int
    """Key of its maskings: answers of one number share them, so that their difference is surer than each of them."""


@dataclass(frozen=True)
class Score:
    """log p(answer | context) in nats, and what it cost."""

    log_p: float
    stderr: float
    """Standard error of the maskings; 0 where nothing is random."""
    greedy: bool
    """Whether the model, asked for its surest token one at a time, would write this answer."""
    estimator: str = "chain rule"
    bound: str = "exact"


@dataclass(frozen=True)
class Scorer:
    """One way to score every answer.

    estimator "bound": Monte Carlo over `draws` maskings of the answer, unbiased for the random-order bound. "chain":
    the exact chain rule from left to right, one evaluation a token. A causal network has its one exact likelihood
    with either. `tokens` is the size of a network call, and changes nothing but the time.
    """

    network: Network
    estimator: EstimatorName = "bound"
    draws: int = 128
    seed: int = 0
    tokens: int = 8192
    guidance: float = 0.0
    """Weight of classifier-free guidance by the context (unsupervised: it is masked for comparison)."""

    def __post_init__(self) -> None:
        if self.estimator not in ("bound", "chain"):
            raise ValueError(f"estimator {self.estimator!r} must be bound or chain")
        for name in ("tokens", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if not is_number(self.guidance):
            raise ValueError(f"guidance {self.guidance} must be a number")

    def __call__(self, answers: Sequence[Answer]) -> Iterator[tuple[list[int], list[Score]]]:
        """(indices, scores) of a part of the answers, the longest first, until all are done."""
        nothing = [i for i, answer in enumerate(answers) if not answer.scored]
        if nothing:
            yield nothing, [Score(0.0, 0.0, True)] * len(nothing)
        parts = list(self._parts(answers))
        for start in range(0, len(parts), ranks.world()):
            turn = parts[start : start + ranks.world()]  # a part for each process
            mine = [self._score([answers[i] for i in turn[k][0]], turn[k][1]) for k in ranks.share(len(turn))]
            rows = ranks.gathered([[astuple(score) for score in scores] for scores in mine], len(turn))
            for (part, _), scores in zip(turn, rows, strict=True):
                yield part, [Score(*score) for score in scores]

    def _parts(self, answers: Sequence[Answer]) -> Iterator[tuple[list[int], int]]:
        """(indices, rows of a call) of answers that are scored together."""
        work = [i for i, answer in enumerate(answers) if answer.scored]
        for length, group in sorted(grouped(work, lambda i: len(answers[i].tokens)).items(), reverse=True):
            # as many answers as a call has rows: whatever multiple of them there is to run, the calls are full
            rows = max(1, self.tokens // (length * (2 if self.guidance else 1)))
            for start in range(0, len(group), rows):
                yield group[start : start + rows], rows

    def _score(self, answers: Sequence[Answer], rows: int) -> list[Score]:
        x_0 = torch.tensor([list(answer.tokens) for answer in answers])
        scored = torch.tensor([answer.scored for answer in answers])
        maskable = torch.arange(x_0.shape[1]) >= x_0.shape[1] - scored[:, None]
        network = guided(self.network, x_0.masked_fill(maskable, self.network.mask_id), self.guidance)
        if network.causal:
            nats, greedy = read_causally(network, x_0, maskable)
            return [Score(-value, 0.0, hit) for value, hit in zip(nats.tolist(), greedy.tolist(), strict=True)]
        if self.estimator == "chain":
            estimate = ordered_log_likelihood(network, x_0, draw_plan(LeftToRight(), maskable), batch=rows)
        else:
            numbers = [answer.number for answer in answers]
            estimate = log_likelihood(
                network, x_0, maskable, draws=self.draws, seed=self.seed, batch=rows, sequences=numbers
            )
        greedy = greedily_written(network, x_0, maskable)
        values = zip(
            estimate.per_sequence.tolist(), estimate.stderr_per_sequence.tolist(), greedy.tolist(), strict=True
        )
        return [Score(-value, error, hit, estimate.estimator, estimate.bound) for value, error, hit in values]


def guided(network: Network, canvases: Sequence[Int[Tensor, " L"]] | Int[Tensor, "S L"], weight: float) -> Network:
    """The network guided by what is given behind the begin token of each canvas; where nothing is, or the weight is 0,
    it alone.
    """
    if not weight:
        return network
    found = Guided.of(network, canvases, weight)
    return found if any(bool(condition.any()) for condition in found.condition) else network


@torch.inference_mode()
def read_causally(
    network: Network, x_0: Int[Tensor, "S L"], scored: Bool[Tensor, "S L"]
) -> tuple[Float[Tensor, " S"], Bool[Tensor, " S"]]:
    """(-log p of the scored tokens in nats, whether each of them is the most probable), in one evaluation."""
    at = scored.flatten().nonzero().squeeze(-1)
    ids = x_0.flatten()[at]
    target = Target(ids, network.vocab)

    def read(logits: Float[Tensor, "n V"], which: slice) -> tuple[Tensor, Tensor]:
        return target(logits, which), logits.argmax(-1)

    log_q, likeliest = (part.cpu() for part in network(x_0, at, then=read))
    row = at // x_0.shape[1]
    nats = torch.zeros(len(x_0), dtype=torch.float64).index_add(0, row, -log_q.double())
    misses = torch.zeros(len(x_0)).index_add(0, row, (likeliest != ids).float())
    return nats, misses == 0


@torch.inference_mode()
def greedily_written(network: Network, x_0: Int[Tensor, "S L"], maskable: Bool[Tensor, "S L"]) -> Bool[Tensor, " S"]:
    """Whether the surest token first, one at a time and each the most probable, writes the text (SMDM's rule for
    LAMBADA).

    A row is left at its first other token, so that this costs little more than one evaluation an answer.
    """
    first = Confidence()
    open_, alive = maskable.clone(), torch.ones(len(x_0), dtype=torch.bool)
    while bool((running := alive & open_.any(-1)).any()):
        row = running.nonzero().squeeze(-1)
        asked = open_[row]
        at = asked.flatten().nonzero().squeeze(-1)

        def surest(logits: Float[Tensor, "n V"], which: slice) -> tuple[Tensor, Tensor]:
            return log_probabilities(logits).max(-1)

        canvas = x_0[row].masked_fill(asked, network.mask_id)
        log_q, token = (part.cpu() for part in network(canvas, at, then=surest, rows=row))
        score = torch.full(asked.shape, -torch.inf, dtype=torch.float64).masked_scatter(asked, log_q.double())
        turn = torch.zeros(len(row), dtype=torch.long)
        chosen = first.choose(score, asked, turn, turn)
        likeliest = torch.zeros_like(x_0[row]).masked_scatter(asked, token)
        alive[row] = (likeliest == x_0[row])[chosen]
        open_[row] = asked & ~chosen
    return alive


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """(context, answer) as tokens of the whole text, split where it begins to differ from the context's own tokens.

    So a token that spans the boundary belongs to the answer, and context + answer is how the text is really read.
    """
    contexts = list(dict.fromkeys(context for context, _ in pairs))
    alone = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
    wholes = tokenizer.encode_batch([context + answer for context, answer in pairs])
    cuts = [shared(whole, alone[context]) for whole, (context, _) in zip(wholes, pairs, strict=True)]
    return [(whole[:cut], whole[cut:]) for whole, cut in zip(wholes, cuts, strict=True)]


def windows(context: list[int], answer: list[int], length: int) -> list[tuple[list[int], list[int]]]:
    """(given, scored) parts of an answer, each of at most `length` tokens: one part, its context cut from the left.

    An answer that is itself longer is scored in parts of half the length, each given the half to its left: the chain
    rule, with the window of the model.
    """
    if len(answer) <= length:
        return [(context[max(0, len(context) + len(answer) - length) :], answer)]
    whole, half = context + answer, max(1, length // 2)
    places = range(len(context), len(whole), half)
    return [(whole[max(0, at + half - length) : at], whole[at : at + half]) for at in places]


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def number_of(*words: object) -> int:
    """A key of randomness for what these words name: 63 bits that do not change with the order of the work."""
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "big") >> 1


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by their key, in order of first appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
