"""Texts written by a model, as records that say how each token appeared and what it cost."""

import time
from collections.abc import Callable, Sequence

from unmask.checkpoint import Model
from unmask.files import Row
from unmask.sampling import Constraint, Draw, LeftToRight, Policy, RandomOrder, Step, sample, sample_matching


def write(
    model: Model,
    texts: Sequence[str],
    policy: Policy | None = None,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    batch: int = 16,
    titles: Sequence[str] | None = None,
    constraint: Constraint | None = None,
    attempts: int | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> list[Row]:
    """Fill the blanks of each text; a record a text: the tokens' pieces, when and how confidently each was written,
    NFE.

    The default policy is exact: a random order one token at a time, left to right for a causal model. `seconds` are
    those of the whole batch, without `on_step`'s. With a `constraint` every text fits it, at each reveal or, where
    `attempts` says how many may be made, as p(x | fits). Raises ValueError for what the model cannot write.
    """
    policy = policy or (LeftToRight() if model.causal else RandomOrder())
    draw = draw or Draw()
    canvases = [model.canvas(text, seed=seed, sequence=i) for i, text in enumerate(texts)]
    watched = 0.0

    def watch(step: Step) -> None:
        """The reader's time is not the sampler's."""
        nonlocal watched
        begun = time.perf_counter()
        if on_step is not None:
            on_step(step)
        watched += time.perf_counter() - begun

    start = time.perf_counter()
    if constraint is None or attempts is None:
        options = {"draw": draw, "seed": seed, "batch": batch}
        samples = sample(model, canvases, policy, **options, constraint=constraint, on_step=watch)
    else:
        matches = sample_matching(
            model, canvases, constraint, policy, draw=draw, seed=seed, batch=batch, attempts=attempts
        )
        samples = matches.samples
    seconds = time.perf_counter() - start - watched
    law = policy.exact_for if draw == Draw() else f"no stated law: {draw} changes the one of {policy.exact_for}"
    if constraint is not None:
        law += "; at each reveal what still fits" if attempts is None else "; given that it fits"
    return [
        {
            "title": titles[i] if titles else text,
            "text": model.decode(samples.tokens[i]),
            "policy": repr(policy),
            "exact_for": law,
            "nfe": int(samples.nfe[i]),
            **({} if constraint is None else {"log_weight": float(samples.log_weight[i])}),
            "seconds": seconds,
            "seed": seed,
            "pieces": model.tokenizer.pieces(samples.tokens[i].tolist()),
            "given": (samples.reveal[i] < 0).tolist(),
            "step": samples.reveal[i].tolist(),
            "confidence": samples.confidence[i].tolist(),
        }
        for i, text in enumerate(texts)
    ]
