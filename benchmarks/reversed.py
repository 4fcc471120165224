"""A blank that what stands behind it decides: letters of a word that is followed by its reversal.

    python benchmarks/reversed.py --out runs/reversed [--steps 3000] [--seeds 0 1 2]

`q{{1..7}}k|kwzxaq.`: words of four to nine random letters, of which one to seven are hidden, never the first or the
last. What stands behind tells which they are, and how many; what stands before, nothing. An MDM learns from two rows of
each word, one whole (so that it can score the text behind a blank) and one with a blank (so that it knows the end token
in one), packed, so that a text needs no block; an ARM of its size and steps learns from the whole rows. Then 500 other
words are asked: the blank as long as what is hidden, of one to seven tokens by the text behind it or by the end token,
and of seven, written the surest first, to be left at the first end token. The ARM sees the prefix alone, and is told
how many. A run that is there goes on, or is not trained again.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

import unmask
from unmask.checkpoint import Model
from unmask.data import Tokenizer, prepare_pairs
from unmask.data.pairs.encoding import ROOM
from unmask.draws import keyed_generator
from unmask.evaluate.infilling import between, likely_lengths
from unmask.evaluate.writing import write
from unmask.files import Row, atomic
from unmask.objectives import AnyOrder, NextToken
from unmask.sampling import Confidence, Draw, LeftToRight, Policy
from unmask.train import Optimiser, TrainConfig, train
from unmask.transformer import TransformerConfig

LEARNT, ASKED = 40_000, 500
SHORTEST, LONGEST = 4, 9
MOST = LONGEST - 2  # hidden letters
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def blanks() -> list[Row]:
    """Of each word what stands before the blank, in it, and behind it; no word stands twice."""
    draws = torch.rand(2 * LEARNT, LONGEST + 3, generator=keyed_generator(0, 0), dtype=torch.float64).tolist()
    found: dict[str, Row] = {}
    for length, many, place, *letters in draws:
        size = SHORTEST + int(length * (LONGEST - SHORTEST + 1))
        word = "".join(LETTERS[int(letter * len(LETTERS))] for letter in letters[:size])
        hidden = 1 + int(many * (size - 2))
        first = 1 + int(place * (size - 1 - hidden))
        last = first + hidden
        found[word] = {"prompt": word[:first], "response": word[first:last], "suffix": f"{word[last:]}|{word[::-1]}."}
    return list(found.values())[: LEARNT + ASKED]


def whole(row: Row) -> Row:
    return {"prompt": "", "response": row["prompt"] + row["response"] + row["suffix"]}


def prepared(out: Path, name: str, learnt: list[Row], held_out: list[Row]) -> Path:
    """The folder of pairs of these rows."""
    out.mkdir(parents=True, exist_ok=True)
    for part, rows in (("learnt", learnt), ("held-out", held_out)):
        with atomic(out / f"{name}-{part}.jsonl") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    source, asked = (str(out / f"{name}-{part}.jsonl") for part in ("learnt", "held-out"))
    return prepare_pairs(source, out / name, tokenizer="characters", held_out=asked).folder


def settings(data: Path, causal: bool, steps: int, seed: int) -> TrainConfig:
    return TrainConfig(
        network=TransformerConfig(
            vocab=Tokenizer.load(data).vocab, layers=4, heads=4, width=64, causal=causal, neighbours=4
        ),
        data=str(data),
        objective=NextToken() if causal else AnyOrder(importance=0.5),
        length=2 * (2 * LONGEST + 4 + ROOM),  # twice a word, its reversal, four marks, and what a blank is longer
        batch=48,
        packed=True,
        steps=steps,
        optimiser=Optimiser(rate=5e-3, muon=True),
        device="cpu",
        seed=seed,
        validate_every=steps,
        save_every=500,
    )


def filled(
    model: Model, rows: list[Row], templates: list[str], policy: Policy, *, until_end: bool = False
) -> list[str]:
    """What is written in the one blank of each template, without end tokens or up to the first."""
    bias = {} if until_end else {model.tokenizer.end: -math.inf}
    texts = write(model, templates, policy, draw=Draw(temperature=0), batch=64, until_end=until_end, bias=bias)
    behind = [template.rpartition("}}")[2] for template in templates]
    return [
        str(text["text"]).removeprefix(row["prompt"]).removesuffix(after)
        for text, row, after in zip(texts, rows, behind, strict=True)
    ]


def ways(mdm: Model, arm: Model, rows: list[Row]) -> dict[str, list[str]]:
    """What stands in the blanks, by each way of knowing how long they are."""
    given = [between(row["prompt"], row["suffix"], len(row["response"])) for row in rows]
    ranges = [f"{row['prompt']}{{{{1..{MOST}}}}}{row['suffix']}" for row in rows]
    longest = [between(row["prompt"], row["suffix"], MOST) for row in rows]
    alone = [between(row["prompt"], length=len(row["response"])) for row in rows]
    by_text = [likely_lengths(mdm, text, draws=8)[0] for text in ranges]
    by_end = [likely_lengths(mdm, text, by="end")[0] for text in ranges]
    return {
        "MDM, told how many": filled(mdm, rows, given, Confidence()),
        "MDM, by the text behind": filled(mdm, rows, by_text, Confidence()),
        "MDM, by the end token": filled(mdm, rows, by_end, Confidence()),
        "MDM, up to the first end token": filled(mdm, rows, longest, Confidence(), until_end=True),
        "ARM, prefix alone, told how many": filled(arm, rows, alone, LeftToRight()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    rows = blanks()
    asked, learnt = rows[:ASKED], rows[ASKED:]
    both = prepared(options.out, "both", [*map(whole, learnt), *learnt], asked)
    alone = prepared(options.out, "whole", [whole(row) for row in learnt], [whole(row) for row in asked])
    hits: dict[str, list[list[float]]] = {}
    for seed in options.seeds:
        ends = f"{options.steps}-{seed}"
        mdm = unmask.load(train(settings(both, False, options.steps, seed), options.out / f"mdm-{ends}"))
        arm = unmask.load(train(settings(alone, True, options.steps, seed), options.out / f"arm-{ends}"))
        for way, texts in ways(mdm, arm, asked).items():
            right = np.mean([text == row["response"] for text, row in zip(texts, asked, strict=True)])
            long = np.mean([len(text) == len(row["response"]) for text, row in zip(texts, asked, strict=True)])
            hits.setdefault(way, []).append([float(right), float(long)])
            print(f"seed {seed}: {way:<34} right {right:6.1%}, as long as what is hidden {long:6.1%}", flush=True)
    if len(options.seeds) > 1:
        for way, values in hits.items():
            mean, error = np.mean(values, 0), np.std(values, 0, ddof=1) / len(values) ** 0.5
            told = (f"{name} {m:6.1%} ± {e:.1%}" for name, m, e in zip(("right", "as long"), mean, error, strict=True))
            print(f"{way:<34} {', '.join(told)}")


if __name__ == "__main__":
    main()
