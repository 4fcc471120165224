"""Facts about people that do not exist, to be learnt in one direction and asked in both; and how answers are scored."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.data.batches import batch_indices
from unmask.data.pairs import Plain, Reading, rows_of
from unmask.evaluate.answers import Question

TO_NAME, TO_DESCRIPTION = "description → name", "name → description"
SAME, REVERSE = "same", "reverse"
TRAIN = "all_prompts_train.jsonl"
TESTS = {
    (TO_NAME, SAME): "d2p_prompts_test.jsonl",
    (TO_NAME, REVERSE): "p2d_reverse_prompts_test.jsonl",
    (TO_DESCRIPTION, SAME): "p2d_prompts_test.jsonl",
    (TO_DESCRIPTION, REVERSE): "d2p_reverse_prompts_test.jsonl",
}
"""What is asked of facts that were learnt in the same direction or in the other: files of Berglund et al. (2309.12288).
"""
KEYS = tuple(TESTS)


@dataclass(frozen=True)
class Facts:
    """Statements to learn, and by what is asked and direction the questions with the number of the fact of each."""

    name: str
    train: tuple[Plain, ...]
    tests: dict[tuple[str, str], list[tuple[int, Plain]]]

    def questions(self, key: tuple[str, str], most: int) -> tuple[list[Question], list[int]]:
        """At most so many questions, spread evenly over the facts, and the fact of each."""
        every = self.tests[key]
        count = min(most, len(every))
        chosen = [every[i * len(every) // count] for i in range(count)]
        asked = [Question(i, (each.prompt,), False, (each.answer,)) for i, (_, each) in enumerate(chosen)]
        return asked, [fact for fact, _ in chosen]


def published(folder: Path) -> Facts:
    """The facts of Berglund et al. from a folder of their files. Raises ValueError where one is absent or has none."""
    if absent := [name for name in (TRAIN, *TESTS.values()) if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} has no {absent[0]}: give the folder of the reversal curse's files, or leave out --local"
        )
    texts = {key: _read(folder / name) for key, name in TESTS.items()}
    tests = {}
    for direction, other in ((SAME, REVERSE), (REVERSE, SAME)):
        names = list(dict.fromkeys(each.answer.strip() for each in texts[TO_NAME, direction]))
        tests[TO_NAME, direction] = [(names.index(each.answer.strip()), each) for each in texts[TO_NAME, direction]]
        # the other set of facts to learn: those whose names are asked for in one direction are described in the other
        asked = texts[TO_DESCRIPTION, other]
        tests[TO_DESCRIPTION, other] = [(_about(each, names, folder), each) for each in asked]
    return Facts("Berglund et al.", tuple(_read(folder / TRAIN)), {key: tests[key] for key in KEYS})


def _read(path: Path) -> list[Plain]:
    examples = []
    for place, row in rows_of(str(path)):
        found = Reading()(row)[0] if isinstance(row, dict) else None
        if not isinstance(found, Plain):
            raise ValueError(f"{place}: no prompt with a completion: take the file as it was published")
        examples.append(found)
    if not examples:
        raise ValueError(f"{path}: no rows: take the file as it was published")
    return examples


def _about(example: Plain, names: Sequence[str], folder: Path) -> int:
    for i, name in enumerate(names):
        if name in example.prompt:
            return i
    raise ValueError(f"{folder}: {example.prompt!r} holds no known name: take the files as they were published")


FIRST = ("Alma", "Bram", "Cora", "Dov", "Edda", "Finn", "Greta", "Hugo", "Ines", "Joss", "Kaia", "Lorn")
LAST = ("Ash", "Birch", "Crane", "Dunn", "Elver", "Farrow", "Glass", "Holm")
ROLES = ("the baker of", "the judge of", "the painter of", "the doctor of", "the pilot of", "the poet of")
TOWNS = ("Rome", "Lima", "Cork", "Oslo", "Bath", "Kyoto", "Quito", "Vienna", "Delhi", "Sparta")
OPENINGS = ("", "They say ", "I heard that ", "As we know, ", "It is true that ", "He wrote that ")
NAMED = ("{name} is", "{name} was", "{name} became", "{name} was called", "{name} is known as", "people call {name}")
DESCRIBED = (
    "{text} is", "{text} was", "{text} is called", "{text} goes by the name of", "{text} is known as", "we call {text}",
)  # fmt: skip


def made_up(count: int) -> Facts:
    """3 · count people: of a third names are learnt before descriptions, of a third behind them, of a third both.

    Each is told in 30 wordings, an opening and a rest; the questions are of the first two thirds, in six more, pairs of
    the same openings and rests that were not learnt. Settings were tried on other people, those of seed 0.

    Raises ValueError for more people than there are descriptions.
    """
    if 3 * count > len(ROLES) * len(TOWNS):
        raise ValueError(
            f"{count} facts a kind are more than there are descriptions: take {len(ROLES) * len(TOWNS) // 3}"
        )
    draw = [batch_indices(n, n, seed=1, step=0)[: 3 * count] for n in (96, 60)]
    names = [f"{FIRST[i // len(LAST)]} {LAST[i % len(LAST)]}" for i in draw[0].tolist()]
    texts = [f"{ROLES[i // len(TOWNS)]} {TOWNS[i % len(TOWNS)]}" for i in draw[1].tolist()]

    def of(people: range, *, named: bool, asked: bool) -> list[tuple[int, Plain]]:
        return [
            (i, Plain(f"{said[0].upper()}{said[1:]}", f" {texts[i] if named else names[i]}."))
            for i in people
            for j, opening in enumerate(OPENINGS)
            for k, rest in enumerate(NAMED if named else DESCRIBED)
            if (j == k) == asked
            for said in [opening + rest.format(name=names[i], text=texts[i])]
        ]

    forward, backward, both = (range(i * count, (i + 1) * count) for i in range(3))
    train = [of(people, named=True, asked=False) for people in (forward, both)]
    train += [of(people, named=False, asked=False) for people in (backward, both)]
    tests = {
        (TO_NAME, SAME): of(backward, named=False, asked=True),
        (TO_NAME, REVERSE): of(forward, named=False, asked=True),
        (TO_DESCRIPTION, SAME): of(forward, named=True, asked=True),
        (TO_DESCRIPTION, REVERSE): of(backward, named=True, asked=True),
    }
    return Facts("made up", tuple(each for part in train for _, each in part), tests)


def found(answer: str, reference: str) -> bool:
    """Exact match as SMDM counts it: the answer holds the reference, but for case and a final stop."""
    return reference.strip().rstrip(".").lower() in answer.lower()


def bleu(answer: str, reference: str) -> float:
    """BLEU-4 of one answer over characters, unsmoothed, as SMDM measures it, but for case and outer blanks.

    exp(min(0, 1 − r/a)) Π_n p_n^{1/4}, p_n the share of the answer's n-grams that the reference has as often (Papineni
    et al. 2002), a and r the lengths.
    """
    a, r = answer.strip().lower(), reference.strip().lower()
    logs = []
    for n in range(1, 5):
        mine, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, r))
        hits = sum((mine & theirs).values())
        if not hits:
            return 0.0
        logs.append(math.log(hits / sum(mine.values())))
    return math.exp(min(0.0, 1 - len(r) / len(a)) + sum(logs) / 4)
