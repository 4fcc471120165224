"""Texts written by a model, as records that say how each token appeared and what it cost."""

import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from unmask import ranks
from unmask.checkpoint import Model
from unmask.files import Row
from unmask.network import Network
from unmask.sampling import (
    Blocks,
    Constraint,
    Draw,
    LeftToRight,
    Policy,
    RandomOrder,
    Speculative,
    Step,
    behind_end,
    inside_of,
    sample,
    sample_matching,
)
from unmask.wrappers import Biased, Guided


def write(
    model: Model,
    texts: Sequence[str],
    policy: Policy | None = None,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    batch: int = 16,
    guidance: float = 0.0,
    bias: Mapping[int, float] | None = None,
    until_end: bool = False,
    titles: Sequence[str] | None = None,
    constraint: Constraint | None = None,
    attempts: int | None = None,
    on_step: Callable[[Step], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Fill the blanks of each text; a record a text: the tokens' pieces, when and how confidently each was written,
    NFE. Under torchrun each process writes its share, and all get the whole.

    The default policy is exact: a random order one token at a time, left to right for a causal model. `guidance` is
    the weight of classifier-free guidance by what is given behind the begin token, `bias` nats on single tokens (-inf
    bans); with `until_end` a blank's text ends at its first end token. With a `constraint` every text fits it, at each
    reveal or, where `attempts` says how many may be made, as p(x | fits). `progress` is told of tokens written and to
    be written. `seconds` are those of the whole batch, without what its watchers take. Raises ValueError for what the
    model cannot write.
    """
    policy = policy or (LeftToRight() if model.causal else RandomOrder())
    draw = (draw or Draw()).among(model.vocab)
    mine = ranks.share(len(texts))
    canvases = [model.canvas(texts[i], seed=seed, sequence=i) for i in mine]
    network: Network = Biased(model, bias) if bias else model
    if guidance:
        network = Guided.of(network, canvases, guidance)
    end = model.tokenizer.end if until_end else None
    watched = 0.0
    told: list[list[Event]] = [[] for _ in mine]
    count = counting(canvases, model.mask_id, progress)

    def watch(step: Step) -> None:
        """The reader's time is not the sampler's."""
        nonlocal watched
        begun = time.perf_counter()
        _tell(told, step)
        if on_step is not None:
            on_step(step)
        count(step)
        watched += time.perf_counter() - begun

    start = time.perf_counter()
    options = {"draw": draw, "seed": seed, "sequences": mine, "batch": batch, "end": end}
    if constraint is None or attempts is None:
        samples = sample(network, canvases, policy, **options, constraint=constraint, on_step=watch)
    else:
        samples = sample_matching(network, canvases, constraint, policy, **options, attempts=attempts).samples
    seconds = time.perf_counter() - start - watched
    changed = [] if draw == Draw() else [str(draw)]
    changed += ["filling up behind an end token"] if until_end and not _from_the_left(policy) else []
    law = (f"no stated law: {' with '.join(changed)} changes the one of " if changed else "") + policy.exact_for
    law += f", of the network guided with weight {guidance:g}" if guidance else ""
    law += ", of the network with a bias on tokens" if bias else ""
    if constraint is not None:
        law += "; at each reveal what still fits" if attempts is None else "; given that it fits"

    def text_of(i: int) -> str:
        tokens = samples.tokens[i]
        if end is not None:
            tokens = tokens[~behind_end(tokens[None], canvases[i][None] == model.mask_id, end)[0]]
        return model.decode(tokens)

    records = [
        {
            "title": titles[number] if titles else texts[number],
            "text": text_of(i),
            "policy": repr(policy),
            **({} if draw == Draw() else {"draw": str(draw)}),
            **({"guidance": guidance} if guidance else {}),
            "exact_for": law,
            "nfe": int(samples.nfe[i]),
            **({} if constraint is None else {"log_weight": float(samples.log_weight[i])}),
            "seconds": seconds,
            "seed": seed,
            "pieces": model.tokenizer.pieces(samples.tokens[i].tolist()),
            "given": (samples.reveal[i] < 0).tolist(),
            "step": samples.reveal[i].tolist(),
            "confidence": samples.confidence[i].tolist(),
            **_history(model, told[i]),
        }
        for i, number in enumerate(mine)
    ]
    return ranks.gathered(records, len(texts))


def _from_the_left(policy: Policy) -> bool:
    """Whether a token is written only after all before it, so that none has seen what an end token makes void."""
    policy = policy.inside if isinstance(policy, Speculative) else policy
    return isinstance(inside_of(policy), LeftToRight) or (isinstance(policy, Blocks) and policy.size == 1)


def counting(
    canvases: Sequence[Tensor], mask_id: int, progress: Callable[[int, int], None] | None
) -> Callable[[Step], None]:
    """An `on_step` that tells how many of the open positions are written."""
    written, total = set(), sum(int((canvas == mask_id).sum()) for canvas in canvases)

    def on_step(step: Step) -> None:
        for *place, token in zip(step.sequence.tolist(), step.position.tolist(), step.token.tolist(), strict=True):
            (written.discard if token == mask_id else written.add)(tuple(place))
        if progress is not None and total:
            progress(len(written), total)

    return on_step


Event = tuple[int, int, int, float]
"""(evaluation of its sequence, position, token or the mask, confidence)."""


def _tell(told: list[list[Event]], step: Step) -> None:
    """Add what a call changed to the events of its sequences; a sequence's evaluations are counted from 0."""
    turns: dict[int, int] = {}
    columns = (step.sequence, step.position, step.token, step.confidence)
    for i, *change in zip(*(column.tolist() for column in columns), strict=True):
        if i not in turns:
            turns[i] = told[i][-1][0] + 1 if told[i] else 0
        told[i].append((turns[i], *change))


def _history(model: Model, events: list[Event]) -> Row:
    """Every writing and erasure of a text in which something was written twice: [step, position, piece, confidence],
    the piece null where a token was erased.
    """
    if len({position for _, position, _, _ in events}) == len(events):
        return {}
    pieces = {token: model.tokenizer.pieces([token])[0] for _, _, token, _ in events if token != model.mask_id}
    return {"history": [[turn, position, pieces.get(token), sure] for turn, position, token, sure in events]}
