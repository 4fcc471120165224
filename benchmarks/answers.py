"""Filled or packed: two ways to lay answers out in fine-tuning an MDM, at equal steps, on the three-digit sums.

    python benchmarks/answers.py --out runs/answers [--steps 5000] [--seeds 0 1 2]

Filled (SMDM's, the default): an example a sequence, its answer followed by end tokens to the end of the block, all
learnt. Packed (`--packed`): four examples of variable length in a sequence four times as long, kept apart, each with
one end token. A step has as many positions in both, and about as many examples. Then 1,000 other sums are asked, one
token at a time, most confident first, in a block to be filled, and in as many positions as the answer and its end
token take, which no user knows beforehand. A run that is there goes on, or is not trained again.
"""

import argparse
import math
from collections import defaultdict
from pathlib import Path

import unmask
from unmask.checkpoint import Model
from unmask.data import Tokenizer, prepare_pairs
from unmask.data.pairs import Plain, Template, prompt_ids
from unmask.evaluate.answers import Asking, Question, fill, questions_of
from unmask.evaluate.exact import same
from unmask.files import read_lines
from unmask.sampling import Confidence, Draw
from unmask.train import Optimiser, TrainConfig, train
from unmask.transformer import TransformerConfig

BLOCK, BATCH, EXAMPLES = 15, 128, 4


def settings(data: Path, packed: bool, steps: int, seed: int) -> TrainConfig:
    """Either way 2,048 positions a step, begin tokens counted."""
    times = EXAMPLES if packed else 1
    return TrainConfig(
        network=TransformerConfig(vocab=Tokenizer.load(data).vocab, layers=4, heads=4, width=64),
        data=str(data),
        name="packed" if packed else "filled",
        length=times * (BLOCK + 1) - 1,
        batch=BATCH // times,
        packed=packed,
        steps=steps,
        optimiser=Optimiser(rate=5e-3, muon=True),
        device="cpu",
        seed=seed,
        validate_every=steps,
        save_every=steps,
    )


def right(model: Model, questions: list[Question], told: bool) -> list[bool]:
    """Whether each answer is the reference, in a block or, `told`, in as many positions as it takes."""
    asking = Asking(policy=Confidence(), draw=Draw(temperature=0), block=BLOCK, batch=64)
    groups: dict[int | None, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        groups[1 + len(model.tokenizer.encode(question.references[-1])) if told else None].append(i)
    found: dict[int, bool] = {}
    for length, some in groups.items():
        prompts = [prompt_ids(Plain(questions[i].turns[0], ""), model.tokenizer, Template()) for i in some]
        for i, written in zip(some, fill(model, prompts, some, asking, length), strict=True):
            found[i] = same(written.text, questions[i].references[-1], as_text=questions[i].as_text)
    return [found[i] for i in range(len(questions))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=1000)
    options = parser.parse_args()
    data = options.out / "data"
    if not data.exists():
        prepare_pairs("addition", data, tokenizer="characters")
    questions = questions_of("addition:test")[: options.questions]
    for seed in options.seeds:
        for packed in (False, True):
            config = settings(data, packed, options.steps, seed)
            run = train(config, options.out / f"{config.name}-{options.steps}-{seed}")
            seconds = read_lines(run / "metrics.jsonl")[-1]["seconds"]
            for told in (False, True):
                share = sum(right(unmask.load(run), questions, told)) / len(questions)
                error = math.sqrt(share * (1 - share) / len(questions))
                where = "in as many positions as it takes" if told else f"in a block of {BLOCK}"
                print(
                    f"{config.name}, seed {seed}, {options.steps} steps, {seconds:.0f} s: the answer {where}: "
                    f"{share:.1%} ± {error:.1%} right",
                    flush=True,
                )


if __name__ == "__main__":
    main()
