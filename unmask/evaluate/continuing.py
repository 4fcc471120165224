"""Texts continued up to a stop sequence, a block of tokens at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.checkpoint import Model
from unmask.data import Tokenizer
from unmask.evaluate.scoring import grouped, guided, number_of
from unmask.network import Network
from unmask.sampling import AdaptivePolicy, Confidence, Draw, LeftToRight, Planned, sample


@dataclass(frozen=True)
class Prompt:
    """Tokens to go on from (no begin token), and where to stop."""

    tokens: Sequence[int]
    stops: Sequence[str] = ()
    """The text ends before the first of these."""
    most: int = 256
    """Tokens to write at most."""
    draw: Draw = field(default_factory=Draw)
    number: int = 0
    """Key of its randomness."""


def continuations(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    length: int,
    policy: Planned | AdaptivePolicy | None = None,
    block: int = 32,
    seed: int = 0,
    tokens: int = 8192,
    guidance: float = 0.0,
) -> list[str]:
    """What the model writes after each prompt, up to a stop sequence, its end token or `most` tokens.

    Blocks of `block` tokens are written one after another, inside each by `policy` (the surest token first; from the
    left for a causal model), and no text is written past the block in which it stops. The model sees at most `length`
    tokens: what is further left is cut off. `guidance` is the weight of guidance by what it sees.
    """
    policy = policy or (LeftToRight() if model.causal else Confidence())
    block = max(1, min(block, length // 2))
    written: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    open_, turn = [i for i, prompt in enumerate(prompts) if prompt.most > 0], 0
    while open_:
        size = {i: min(block, prompts[i].most - len(written[i])) for i in open_}
        seen = {i: [*prompts[i].tokens, *written[i]][-(length - size[i]) :] for i in open_}
        for group in grouped(open_, lambda i: prompts[i].draw).values():
            canvases = [torch.tensor([model.tokenizer.begin, *seen[i], *[model.mask_id] * size[i]]) for i in group]
            network = guided(model, canvases, guidance)
            numbers = [number_of(prompts[i].number, turn) for i in group]
            filled = _fill(network, canvases, policy, prompts[group[0]].draw, seed, numbers, tokens)
            for i, canvas in zip(group, filled, strict=True):
                written[i] += canvas[-size[i] :].tolist()
        finished = set()
        for i in open_:
            texts[i], stopped = _upto(model, prompts[i], written[i])
            if stopped or len(written[i]) >= prompts[i].most:
                finished.add(i)
        open_, turn = [i for i in open_ if i not in finished], turn + 1
    return texts


def _fill(
    network: Network,
    canvases: Sequence[Tensor],
    policy: Planned | AdaptivePolicy,
    draw: Draw,
    seed: int,
    numbers: Sequence[int],
    tokens: int,
) -> list[Tensor]:
    rows = max(1, tokens // max(len(canvas) for canvas in canvases))
    return sample(network, canvases, policy, draw=draw, seed=seed, sequences=numbers, batch=rows).tokens


def text_behind(given: Sequence[int], written: Sequence[int], tokenizer: Tokenizer) -> str:
    """What was written behind a prompt: both are decoded, for a decoder may drop a blank that begins a text."""
    return tokenizer.decode([*given, *written])[len(tokenizer.decode(list(given))) :]


def _upto(model: Model, prompt: Prompt, written: Sequence[int]) -> tuple[str, bool]:
    """(text written so far up to where it stops, whether it stops)."""
    end = model.tokenizer.end
    ended = end in written
    kept = list(written[: written.index(end)] if ended else written)
    text = text_behind(prompt.tokens, kept, model.tokenizer)
    places = [place for stop in prompt.stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, ended)
