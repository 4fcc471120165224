"""What experiments on questions and answers share: the set, the size of a run on it, and who answers how."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unmask.data import batch_indices, load_manifest, prepare_pairs
from unmask.data.pairs import held_out_places, load_pairs
from unmask.data.pairs.builtin import ADDITION, PAIRS, TEST
from unmask.data.splits import SPLITS
from unmask.evaluate.answers import Question, questions_of
from unmask.experiments.running import BUILTIN, Scale
from unmask.experiments.setting import SETTINGS, Setting
from unmask.files import Row, atomic

USEFUL = 0.5  # a model that answers less than this in any way has not learnt, and there is nothing to compare
FEWEST = 4
LAPTOP = SETTINGS["laptop"]
SIZES: dict[Scale, Setting] = {
    "tiny": replace(SETTINGS["tiny"], length=64, batch=16, steps=8),
    "laptop": replace(
        LAPTOP,
        layers=4,
        width=64,
        head_width=16,
        neighbours=0,
        length=256,
        batch=128,
        steps=5000,
        rate=5e-3,
        muon=True,
        sequences=1000,
    ),
    "gpu": replace(SETTINGS["gpu"], layers=6, width=384, length=512, sequences=1000),
}
"""Questions asked are `sequences`, and `length` the most that an example may have. The laptop's MDM learns to add digit
by digit, each at a time that depends on the seed: with four layers six runs of six had after 1,250 to 4,000 steps, with
three one of six had not after 5,000; and later where heads that are at their neighbours have to turn away first."""


def learnt_from(source: str) -> str:
    return ADDITION if source == BUILTIN else source


def asked_of(source: str, questions: str | None) -> list[Question]:
    """The questions of a file, or else of a built-in set's other part, or those that are held out of the source.

    Raises ValueError for a file that holds few, or some without an answer: before anything is trained.
    """
    if questions is not None:
        found = questions_of(questions)
    elif learnt_from(source) in PAIRS:
        return questions_of(f"{learnt_from(source)}{TEST}")
    else:
        found = questions_of(source, held_out_places(source).__contains__)
    if any(question.reference is None for question in found):
        raise ValueError(f"{questions or source}: a question without an answer: leave it out")
    enough(found, questions or source)
    return found


def learnt_questions(source: str, questions: str | None) -> list[Question]:
    """What is learnt from, as questions: all of the source but those that are held out of it to be asked."""
    if questions is None and learnt_from(source) not in PAIRS:
        held_out = held_out_places(source)
        return questions_of(source, lambda place: place not in held_out)
    return questions_of(learnt_from(source))


def enough(questions: Sequence[Question], source: str) -> None:
    """Raises ValueError for fewer than two halves with an error each."""
    if len(questions) < FEWEST:
        raise ValueError(f"{source}: {len(questions)} to ask, of which two halves tell no error: give {FEWEST}")


def prepared(
    source: str,
    scale: Scale,
    out: Path,
    tokenizer: Path | None,
    file: str | None = None,
    held_out: str | None = None,
) -> Path:
    """The folder `out` of the pairs of `source`, or of a `file` made of it, by the `tokenizer`; without one the
    built-in ones by characters, others by a tokenizer trained on them. Validation is `held_out`, or a share of them.
    """
    made = "characters" if learnt_from(source) == ADDITION else SIZES[scale].tokenizer
    return prepare_pairs(file or learnt_from(source), out, tokenizer=str(tokenizer or made), held_out=held_out).folder


def sized(data: str | Path, setting: Setting) -> Setting:
    """The setting with a folder's vocabulary, in blocks as long as its longest example."""
    vocab = load_manifest(data)["tokenizer"]["vocab"]
    longest = max(int(load_pairs(data, side).lengths.max()) for side in SPLITS)
    return replace(setting, vocab=vocab, length=min(longest, setting.length))


def packed(hits: Sequence[float]) -> str:
    """Which answers were right, as a text of digits."""
    return "".join("01"[bool(hit)] for hit in hits)


def bits(row: Row) -> list[int]:
    return [int(digit) for digit in row["right"]]


def together(every: list[Question], count: int, source: str, passes: int = 1) -> list[Question]:
    """Questions, which `source` has, `count` asked at once: prompts one behind the other, answers a line each.

    `passes` go through all of them, the first in their order, the others each in one of its own. Raises ValueError for
    answers that are not compared as text, and where there are too few.
    """
    if count == 1:
        return every
    if not all(question.as_text for question in every):
        raise ValueError(f'{source}: only rows with "match": "text" can be asked {count} at once: take lengths of 1')
    if len(every) < count:
        raise ValueError(f"{source}: {len(every)} questions, fewer than {count} to be asked at once")
    orders = [range(len(every)), *(batch_indices(len(every), len(every), seed=i, step=0) for i in range(1, passes))]
    groups = [
        [every[int(j)] for j in order[i : i + count]]
        for order in orders
        for i in range(0, len(every) - count + 1, count)
    ]
    return [
        Question(
            i,
            ("".join(each.turns[0] for each in group),),
            False,
            ("\n".join(each.references[0] for each in group),),
            as_text=True,
        )
        for i, group in enumerate(groups)
    ]


def written(questions: Sequence[Question], path: Path) -> str:
    """The questions with their answers as a file to learn from."""
    with atomic(path) as file:
        for question in questions:
            row = {"prompt": question.turns[0], "response": question.references[0], "match": "text"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return str(path)
