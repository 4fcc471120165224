"""Pairs that come with the package, to learn from and, behind ":test", to be asked: sums, and text to be continued."""

from collections.abc import Callable, Iterator

from unmask.data.batches import batch_indices
from unmask.data.sides import Sides
from unmask.data.sources import source_of
from unmask.files import Row

ADDITION, PROBLEMS, ASKED = "addition", 60_000, 4_000  # of a million problems, so many to learn and to be asked
CONTINUATION, WORDS, HELD_OUT = "continuation", 8, 0.05
TEST = ":test"


def additions(test: bool) -> Iterator[Row]:
    """Sums of two numbers of three digits, drawn without repetition; none stands on both sides.

    The sum has four digits, units first, the order in which carries are found: 123+989=2111. Before it stand 0, 1 or 2
    blanks, equally often, none in a test's reference: each is right, so that where a digit stands depends on where the
    others do, which a sampler that reveals all at once cannot know. Zeros count: 0850 is not 850.
    """
    order = batch_indices(10**6, 10**6, seed=0, step=0)
    for i, problem in enumerate((order[: -ASKED - 1 : -1] if test else order[:PROBLEMS]).tolist()):
        a, b = divmod(problem, 1000)
        response = " " * (0 if test else i % 3) + f"{a + b:04}"[::-1]
        yield {"prompt": f"{a:03}+{b:03}=", "response": response, "match": "text"}


def continuations(test: bool) -> Iterator[Row]:
    """Eight words of the built-in corpus, then the next eight, in random order; those of a test are from documents
    that `unmask prepare` holds out as well.
    """
    rows = []
    for held_out, _, part in Sides.of([source_of("builtin")], HELD_OUT).parts():
        if held_out == test:
            words = part.text.split()
            for i in range(0, len(words) - 2 * WORDS + 1, 2 * WORDS):
                prompt, response = (" ".join(words[j : j + WORDS]) for j in (i, i + WORDS))
                rows.append({"prompt": prompt, "response": f" {response}", "match": "text"})
    return (rows[i] for i in batch_indices(len(rows), len(rows), seed=0, step=0).tolist())


PAIRS: dict[str, Callable[[bool], Iterator[Row]]] = {ADDITION: additions, CONTINUATION: continuations}


def builtin_pairs(source: str) -> Iterator[Row] | None:
    """The rows of such a source; None for one that is none."""
    name = source.removesuffix(TEST)
    return PAIRS[name](source != name) if name in PAIRS else None
