"""A blank that what stands behind it decides: the missing term of a sum, by an MDM that sees both sides.

    python benchmarks/missing.py --out runs/missing [--steps 4000] [--seeds 0 1 2]

`17+___=312`: numbers of one to three digits, so that the sum tells the term and how long it is. The MDM learns from
rows of `prompt`, `suffix` and `response`, an ARM of its size and steps from the same rows without what stands behind,
which it cannot read. Then 500 other sums are asked: the blank as long as the term, of one to three tokens by
likelihood, and of three to be left early by the end token. A run that is there goes on, or is not trained again.
"""

import argparse
import json
import math
from pathlib import Path

import torch

import unmask
from unmask.checkpoint import Model
from unmask.data import Tokenizer, prepare_pairs
from unmask.draws import keyed_generator
from unmask.evaluate.answers import Asking, answered, exact_match, questions_of
from unmask.evaluate.infilling import likely_lengths
from unmask.evaluate.writing import write
from unmask.files import Row, atomic, read_lines
from unmask.objectives import AnyOrder, NextToken
from unmask.sampling import Confidence, Draw
from unmask.train import Optimiser, TrainConfig, train
from unmask.transformer import TransformerConfig

LEARNT, ASKED, DIGITS = 60_000, 500, 3
GREEDY = Draw(temperature=0)


def sums() -> list[Row]:
    """Two terms, each of one to three digits, equally often; none stands twice."""
    digits, shares = torch.rand(2, 4 * LEARNT, 2, generator=keyed_generator(0, 0), dtype=torch.float64)
    top = 10 ** (1 + (digits * DIGITS).long())
    least = torch.where(top == 10, 0, top // 10)
    terms = dict.fromkeys(map(tuple, (least + shares * (top - least)).long().tolist()))
    return [{"prompt": f"{a}+", "suffix": f"={a + b}", "response": str(b)} for a, b in terms][: LEARNT + ASKED]


def prepared(out: Path, name: str, rows: list[Row]) -> Path:
    """The folder of pairs of rows, the first of which are to be asked."""
    out.mkdir(parents=True, exist_ok=True)
    for part, some in (("asked", rows[:ASKED]), ("learnt", rows[ASKED:])):
        with atomic(out / f"{name}-{part}.jsonl") as file:
            file.writelines(json.dumps(row) + "\n" for row in some)
    learnt, asked = (str(out / f"{name}-{part}.jsonl") for part in ("learnt", "asked"))
    return prepare_pairs(learnt, out / name, tokenizer="characters", held_out=asked).folder


def settings(data: Path, causal: bool, steps: int, seed: int) -> TrainConfig:
    return TrainConfig(
        network=TransformerConfig(vocab=Tokenizer.load(data).vocab, layers=4, heads=4, width=64, causal=causal),
        data=str(data),
        objective=NextToken() if causal else AnyOrder(importance=0.5),
        length=16,
        batch=128,
        steps=steps,
        optimiser=Optimiser(rate=5e-3, muon=True),
        device="cpu",
        seed=seed,
        validate_every=steps,
        save_every=500,
    )


def ways(model: Model, rows: list[Row]) -> dict[str, list[str]]:
    """What the MDM writes, the length given, chosen by likelihood, or left to the end token."""

    def filled(templates: list[str], until_end: bool = False) -> list[str]:
        texts = write(model, templates, Confidence(), draw=GREEDY, batch=64, until_end=until_end)
        return [str(each["text"]) for each in texts]

    def template(row: Row, blank: str) -> str:
        return f"{row['prompt']}{{{{{blank}}}}}{row['suffix']}"

    ranges = [template(row, f"1..{DIGITS}") for row in rows]
    return {
        "its length given": filled([template(row, str(len(row["response"]))) for row in rows]),
        "its length by likelihood": filled([likely_lengths(model, text, draws=8)[0] for text in ranges]),
        "left by the end token": filled([template(row, str(DIGITS)) for row in rows], until_end=True),
    }


def told(what: str, right: list[bool], length: list[bool] | None = None) -> None:
    share = sum(right) / len(right)
    error = math.sqrt(share * (1 - share) / len(right))
    lengths = "" if length is None else f", as long as the term {sum(length) / len(length):.1%}"
    print(f"{what:<48} {share:6.1%} ± {error:.1%} right{lengths}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    rows = sums()
    asked, bare = rows[:ASKED], [{name: row[name] for name in ("prompt", "response")} for row in rows]
    both, left = prepared(options.out, "both", rows), prepared(options.out, "left", bare)
    for seed in options.seeds:
        run = train(settings(both, False, options.steps, seed), options.out / f"mdm-{options.steps}-{seed}")
        model = unmask.load(run)
        print(f"seed {seed}: {read_lines(run / 'metrics.jsonl')[-1]['seconds']:.0f} s")
        for way, texts in ways(model, asked).items():
            terms = [text[len(row["prompt"]) : -len(row["suffix"])] for text, row in zip(texts, asked, strict=True)]
            right = [term == row["response"] for term, row in zip(terms, asked, strict=True)]
            length = [len(term) == len(row["response"]) for term, row in zip(terms, asked, strict=True)]
            told(f"seed {seed}: MDM, {way}", right, length)
        arm = unmask.load(train(settings(left, True, options.steps, seed), options.out / f"arm-{options.steps}-{seed}"))
        questions = questions_of(str(options.out / "left-asked.jsonl"))
        hits = exact_match(questions, answered(arm, questions, Asking(draw=GREEDY, block=16, batch=64)), "arm")
        told(f"seed {seed}: ARM, prefix alone", [bool(hit) for hit in hits["values"]["right"]])


if __name__ == "__main__":
    main()
