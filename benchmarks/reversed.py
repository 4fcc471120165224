"""A blank that what stands behind it decides: letters of a word that is followed by its reversal.

    python benchmarks/reversed.py --out runs/reversed [--steps 3000] [--fine-tuning 1000] [--seeds 0 1 2]

`q{{1..7}}k|kwzxaq.`: words of four to nine random letters, of which one to seven are hidden, never the first or the
last. What stands behind tells which they are, and how many; what stands before, nothing. An MDM and an ARM of one size
learn from running text, a line a word, and the MDM is then fine-tuned on lines with a blank in each (rows of `prompt`,
`response` and `suffix`, packed), so that it knows the end token there. 500 other words are asked: the blank as long as
what is hidden; of one to seven tokens, by the text behind it (the MDM of running text) or by the end token (the
fine-tuned one); and of seven, written the surest first, to be left at the first end token. The ARM sees the prefix
alone, and is told how many. A run that is there goes on, or is not trained again.
"""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import unmask
from unmask.checkpoint import Model
from unmask.data import Tokenizer, prepare, prepare_pairs
from unmask.data.pairs.encoding import ROOM
from unmask.draws import keyed_generator
from unmask.evaluate.infilling import likely_lengths
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


def written(path: Path, rows: Iterable[Row]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def running_text(out: Path, rows: list[Row]) -> Path:
    """The folder of running text: documents of 100 words, a line each."""
    lines = [f"{row['prompt']}{row['response']}{row['suffix']}\n" for row in rows]
    texts = ({"text": "".join(lines[i : i + 100])} for i in range(0, len(lines), 100))
    return prepare(written(out / "text.jsonl", texts), out / "text", tokenizer="characters", validation=0.05)


def with_blanks(out: Path, rows: list[Row], asked: list[Row], tokenizer: Path) -> Path:
    """The folder of pairs."""
    source, held_out = written(out / "learnt.jsonl", rows), written(out / "asked.jsonl", asked)
    return prepare_pairs(source, out / "blanks", tokenizer=str(tokenizer), held_out=held_out).folder


def settings(data: Path, steps: int, seed: int, *, causal: bool = False, init: Path | None = None) -> TrainConfig:
    """Sequences of several lines, or, with `init`, of at least one with its blank."""
    return TrainConfig(
        network=TransformerConfig(
            vocab=Tokenizer.load(data).vocab, layers=4, heads=4, width=64, causal=causal, neighbours=4
        ),
        data=str(data),
        init=None if init is None else str(init),
        packed=init is not None,
        objective=NextToken() if causal else AnyOrder(importance=0.5),
        length=2 * LONGEST + 2 + 2 * ROOM,
        batch=64,
        steps=steps,
        optimiser=Optimiser(rate=5e-3, warmup=steps // 20, muon=True),
        device="cpu",
        seed=seed,
        validate_every=steps,
        save_every=500,
    )


def templates(rows: list[Row], length: str = "") -> list[str]:
    """Blanks of `length`, else as long as what is hidden."""
    return [f"{row['prompt']}{{{{{length or len(row['response'])}}}}}{row['suffix']}" for row in rows]


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


def ways(text: Model, blanks: Model, arm: Model, rows: list[Row]) -> dict[str, list[str]]:
    """What stands in the blanks, by each way of knowing how long they are.

    Models of running text see the line's end before: a text that begins without it is taken up in mid-word, which one
    way shows.
    """
    lines = [{**row, "prompt": f"\n{row['prompt']}"} for row in rows]
    by_text = [likely_lengths(text, each)[0] for each in templates(lines, f"1..{MOST}")]
    in_word = [likely_lengths(text, each)[0] for each in templates(rows, f"1..{MOST}")]
    by_end = [likely_lengths(blanks, each, by="end")[0] for each in templates(rows, f"1..{MOST}")]
    longest = templates(rows, str(MOST))
    alone = templates([{**line, "suffix": ""} for line in lines])
    return {
        "MDM, told how many": filled(text, lines, templates(lines), Confidence()),
        "MDM, by the text behind": filled(text, lines, by_text, Confidence()),
        "MDM, by the text behind, no line before": filled(text, rows, in_word, Confidence()),
        "fine-tuned, told how many": filled(blanks, rows, templates(rows), Confidence()),
        "fine-tuned, by the end token": filled(blanks, rows, by_end, Confidence()),
        "fine-tuned, up to the first end token": filled(blanks, rows, longest, Confidence(), until_end=True),
        "ARM, prefix alone, told how many": filled(arm, lines, alone, LeftToRight()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--fine-tuning", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    rows, out, steps, later = blanks(), options.out, options.steps, options.fine_tuning
    asked, learnt = rows[:ASKED], rows[ASKED:]
    text = running_text(out, learnt)
    pairs = with_blanks(out, learnt, asked, text)
    hits: dict[str, list[list[float]]] = {}
    for seed in options.seeds:
        arm = train(settings(text, steps, seed, causal=True), out / f"arm-{steps}-{seed}")
        mdm = train(settings(text, steps, seed), out / f"mdm-{steps}-{seed}")
        tuned = train(settings(pairs, later, seed, init=mdm), out / f"tuned-{steps}-{later}-{seed}")
        for way, texts in ways(unmask.load(mdm), unmask.load(tuned), unmask.load(arm), asked).items():
            right = np.mean([each == row["response"] for each, row in zip(texts, asked, strict=True)])
            long = np.mean([len(each) == len(row["response"]) for each, row in zip(texts, asked, strict=True)])
            hits.setdefault(way, []).append([float(right), float(long)])
            print(f"seed {seed}: {way:<39} right {right:6.1%}, as long as what is hidden {long:6.1%}", flush=True)
    if len(options.seeds) > 1:
        for way, values in hits.items():
            mean, error = np.mean(values, 0), np.std(values, 0, ddof=1) / len(values) ** 0.5
            told = (f"{name} {m:6.1%} ± {e:.1%}" for name, m, e in zip(("right", "as long"), mean, error, strict=True))
            print(f"{way:<39} {', '.join(told)}")


if __name__ == "__main__":
    main()
