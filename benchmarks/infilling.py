"""Blanks in held-out sentences: an MDM that sees both sides against an ARM that sees the prefix alone.

    python benchmarks/infilling.py --out runs/infilling [--mdm builtin] [--arm builtin-ar] [--sentences 256]

Sentences of the documents of the built-in corpus that are held out, a run of one to five words hidden in each, at a
place and of a length drawn at random. Three questions, each with its error over sentences, differences in pairs: nats a
token of the hidden words (an ARM by its chain rule given what is left, an MDM by the random-order bound given both
sides and, to tell what the right side is worth, the left one alone); tokens that a greedy decoder finds, the number of
tokens given; and how far off that number is where it is not given: the one under which the text behind is most
probable; by the same MDM fine-tuned on whole texts (rows of `text`: blanks are left early) the median of its law by the
end token, and where the first end token stands in a blank of twelve, written the surest first; one drawn uniformly, and
the best number that is the same for all.
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import unmask
from unmask.checkpoint import Model
from unmask.data import batch_indices, prepare_pairs
from unmask.data.sides import Sides
from unmask.data.sources import source_of
from unmask.draws import keyed_generator
from unmask.evaluate.infilling import By, likely_lengths
from unmask.files import atomic
from unmask.sampling import Confidence, Draw, LeftToRight, Policy, sample
from unmask.sampling.canvas import BLANK
from unmask.train import Optimiser, TrainConfig, train
from unmask.transformer import TransformerConfig

MOST, WORDS, HELD_OUT = 12, 5, 0.05
LENGTH = 128  # tokens of a sentence with its longest blank
GREEDY = Draw(temperature=0)


@dataclass(frozen=True)
class Blank:
    """Tokens before it, hidden in it, and behind it."""

    before: list[int]
    hidden: list[int]
    behind: list[int]


def sentences(held_out: bool) -> list[str]:
    """Of 12 words or more, in random order, each once."""
    found: dict[str, None] = {}
    for apart, _, part in Sides.of([source_of("builtin")], HELD_OUT).parts():
        if apart == held_out:
            for each in re.split(r"(?<=[.!?])\s+", " ".join(part.text.split())):
                if len(each.split()) >= 12 and len(each) <= 240:
                    found[each] = None
    every = list(found)
    return [every[i] for i in batch_indices(len(every), len(every), seed=0, step=0).tolist()]


def blanks(model: Model, count: int) -> list[Blank]:
    """One a sentence; a run of more than MOST tokens, and a sentence that is too long, are left out."""
    found = []
    for i, sentence in enumerate(sentences(held_out=True)):
        words = sentence.split()
        size, place = torch.rand(2, generator=keyed_generator(0, i)).tolist()
        size = 1 + int(size * WORDS)
        first = 3 + int(place * (len(words) - size - 5))
        parts = [words[:first], ["", *words[first : first + size]], ["", *words[first + size :]]]
        before, hidden, behind = (model.tokenizer.encode(" ".join(part)) for part in parts)
        if len(hidden) <= MOST and len(before) + MOST + len(behind) <= LENGTH:
            found.append(Blank(before, hidden, behind))
        if len(found) == count:
            return found
    raise ValueError(f"only {len(found)} sentences: give fewer")


def nats(model: Model, each: Blank, draws: int, *, right: bool) -> float:
    """Nats a token of what is hidden, given both sides or what stands before."""
    tokens = torch.tensor([[model.begin, *each.before, *each.hidden, *(each.behind if right else [])]])
    maskable = torch.zeros_like(tokens, dtype=torch.bool)
    first = 1 + len(each.before)
    maskable[:, first : first + len(each.hidden)] = True
    return unmask.log_likelihood(model, tokens, maskable, draws=draws).nats / len(each.hidden)


def written(model: Model, each: Blank, policy: Policy, *, right: bool, size: int | None = None) -> list[int]:
    """What a greedy decoder writes in a blank of `size` tokens (default: as many as are hidden)."""
    size, first = size or len(each.hidden), 1 + len(each.before)
    canvas = torch.tensor([model.begin, *each.before, *[model.mask_id] * size, *(each.behind if right else [])])
    return sample(model, [canvas], policy, draw=GREEDY).tokens[0][first : first + size].tolist()


def found(model: Model, each: Blank, policy: Policy, *, right: bool) -> float:
    """Share of the hidden tokens."""
    return float(np.mean(np.equal(written(model, each, policy, right=right), each.hidden)))


def settled(model: Model, each: Blank, by: By) -> int:
    before, behind = model.tokenizer.decode(each.before), model.tokenizer.decode(each.behind)
    text, _ = likely_lengths(model, f"{before}{{{{1..{MOST}}}}}{behind}", by=by, draws=16)
    found = BLANK.search(text)
    assert found is not None
    return int(found[1])


def first_end(model: Model, each: Blank) -> int:
    tokens, end = written(model, each, Confidence(), right=True, size=MOST), model.tokenizer.end
    return tokens.index(end) if end in tokens else MOST


def fine_tuned(name: str, model: Model, out: Path, steps: int) -> Model:
    """The MDM after so many steps on whole sentences, of which random spans are learnt."""
    rows = out / "sentences.jsonl"
    if not rows.exists():
        with atomic(rows) as file:
            file.writelines(json.dumps({"text": each}) + "\n" for each in sentences(held_out=False))
        model.tokenizer.save(out / "tokenizer.json")
    data = prepare_pairs(str(rows), out / "data", tokenizer=str(out / "tokenizer.json")).folder
    network = model.network.config
    assert isinstance(network, TransformerConfig)
    config = TrainConfig(
        network=network,
        data=str(data),
        init=name,
        length=LENGTH,
        batch=32,
        steps=steps,
        optimiser=Optimiser(rate=2e-3, warmup=20, muon=True),
        validate_every=100,
        save_every=100,
    )
    return unmask.load(train(config, out / f"ended-{steps}"))


def told(what: str, values: np.ndarray, unit: str) -> None:
    error = np.std(values, ddof=1) / len(values) ** 0.5
    print(f"{what:<58} {np.mean(values):8.3f} ± {error:.3f} {unit}", flush=True)


def of_each(what: str, unit: str, hidden: list[Blank], measure: Callable[[Blank], float]) -> np.ndarray:
    values = np.array([measure(each) for each in hidden], dtype=float)
    told(what, values, unit)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mdm", default="builtin")
    parser.add_argument("--arm", default="builtin-ar")
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--steps", type=int, default=600, help="of the fine-tuning on whole texts")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    mdm, arm, draws = unmask.load(options.mdm), unmask.load(options.arm), options.draws
    hidden = blanks(mdm, options.sentences)
    ended = fine_tuned(options.mdm, mdm, options.out, options.steps)
    sizes = np.array([len(each.hidden) for each in hidden])
    print(f"{len(hidden)} sentences, {sizes.mean():.1f} tokens hidden in each ({sizes.min()} to {sizes.max()})")

    unit, first = "nats a token", LeftToRight()
    both = of_each("MDM, both sides (bound)", unit, hidden, lambda each: nats(mdm, each, draws, right=True))
    left = of_each("MDM, prefix alone (bound)", unit, hidden, lambda each: nats(mdm, each, draws, right=False))
    causal = of_each("ARM, prefix alone (exact)", unit, hidden, lambda each: nats(arm, each, 1, right=False))
    name = "MDM fine-tuned, both sides (bound)"
    tuned = of_each(name, unit, hidden, lambda each: nats(ended, each, draws, right=True))
    told("what the right side is worth to the MDM", left - both, unit)
    told("MDM, both sides, less ARM", both - causal, unit)
    told("MDM fine-tuned, both sides, less ARM", tuned - causal, unit)

    unit = "of the tokens"
    both = of_each("found: MDM, both sides", unit, hidden, lambda each: found(mdm, each, Confidence(), right=True))
    of_each("found: MDM, prefix alone", unit, hidden, lambda each: found(mdm, each, Confidence(), right=False))
    causal = of_each("found: ARM, prefix alone", unit, hidden, lambda each: found(arm, each, first, right=False))
    told("found: MDM, both sides, less ARM", both - causal, unit)

    same = min(range(1, MOST + 1), key=lambda n: np.abs(sizes - n).mean())
    ways = {
        "by the text behind": np.array([settled(mdm, each, "text") for each in hidden]),
        "by the text behind, MDM fine-tuned": np.array([settled(ended, each, "text") for each in hidden]),
        "by the end token, MDM fine-tuned": np.array([settled(ended, each, "end") for each in hidden]),
        "up to the first end token, MDM fine-tuned": np.array([first_end(ended, each) for each in hidden]),
        f"always {same}": np.full(len(hidden), same),
    }
    for way, lengths in ways.items():
        told(f"number of tokens {way}", np.abs(lengths - sizes), "off")
        told(f"number of tokens {way}: right", lengths == sizes, "of 1")
        told(f"number of tokens {way}: mean", lengths, f"tokens, {sizes.mean():.1f} hidden")
    uniform = np.abs(np.arange(1, MOST + 1)[:, None] - sizes).mean(0)
    told("number of tokens drawn uniformly", uniform, f"off; right {1 / MOST:.3f}")


if __name__ == "__main__":
    main()
