"""Constraints in words: regular expressions, JSON schemas and lists of choices, as automata over a model's tokens.

constraint = unmask.Constraint(unmask.grammar.regex(model.tokenizer, "[0-9]{4}-[0-9]{2}"))
samples = unmask.sample(model, canvases, constraint=constraint)

`end` lets end tokens follow a text that fits, so that a canvas may be longer than the text. `opens` says that nothing
stands before the constrained text, where sentencepiece decoders drop a space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from unmask.data import Tokenizer
from unmask.files import read_json
from unmask.grammar import regular as _regular
from unmask.grammar.schema import schema_pattern
from unmask.sampling import Constraint
from unmask.sampling.automaton import START, Automaton, ByteAutomaton, over_tokens

__all__ = ["Form", "choices", "json_schema", "regex", "schema_pattern"]


def regex(tokenizer: Tokenizer, pattern: str, *, end: bool = True, opens: bool = False) -> Automaton:
    """Texts that a regular expression in Python's syntax fits whole.

    Raises ValueError for a pattern that is not valid, not regular (backreferences, lookaround) or too large.
    """
    return _lifted(tokenizer, _regular.regular(pattern), end, opens)


def json_schema(tokenizer: Tokenizer, schema: object, *, end: bool = True, opens: bool = False) -> Automaton:
    """JSON that a schema accepts; which schemas, and how it is spelled, `schema_pattern` says.

    Raises ValueError for a schema with a keyword that could not be kept.
    """
    return regex(tokenizer, schema_pattern(schema), end=end, opens=opens)


def choices(tokenizer: Tokenizer, texts: Sequence[str], *, end: bool = True, opens: bool = False) -> Automaton:
    """One of the texts. Raises ValueError for an empty list or text."""
    return _lifted(tokenizer, _regular.choices(texts), end, opens)


@dataclass(frozen=True)
class Form:
    """What a text must fit, as options of a command; at most one is given."""

    regex: str | None = None
    """What stands from the first blank to the last must fit this regular expression (Python's syntax)."""
    schema: Path | None = None
    """... or be JSON that this JSON schema accepts."""
    choices: str | None = None
    """... or be one of these texts, separated by "|"."""

    def __post_init__(self) -> None:
        if len(self.given()) > 1:
            raise ValueError("--regex, --schema and --choices: give one of them")

    def given(self) -> dict[str, str]:
        """The option that is given."""
        return {name: str(value) for name, value in vars(self).items() if value is not None}

    def constraint(self, tokenizer: Tokenizer, *, end: bool = True, opens: bool = False) -> Constraint | None:
        """None where nothing is given. Raises ValueError for what cannot be read or kept."""
        return _constraint(self, tokenizer, end, opens)


@lru_cache(maxsize=4)  # of one command; over 50,257 tokens making one takes seconds
def _constraint(form: Form, tokenizer: Tokenizer, end: bool, opens: bool) -> Constraint | None:
    if form.regex is not None:
        return Constraint(regex(tokenizer, form.regex, end=end, opens=opens))
    if form.schema is not None:
        return Constraint(json_schema(tokenizer, read_json(form.schema), end=end, opens=opens))
    if form.choices is not None:
        return Constraint(choices(tokenizer, form.choices.split("|"), end=end, opens=opens))
    return None


def _lifted(tokenizer: Tokenizer, letters: ByteAutomaton, end: bool, opens: bool) -> Automaton:
    if opens and tokenizer.drops_first_space():
        letters = _after_a_lost_space(letters)
    return over_tokens(letters, tokenizer.spellings(), end=tokenizer.end if end else None)


def _after_a_lost_space(letters: ByteAutomaton) -> ByteAutomaton:
    """What decodes to a text that fits: such a text behind one space, or one that begins with none."""
    table = np.hstack([letters.table, letters.table[:, letters.kind[[ord(" ")]]]])
    kind = letters.kind.copy()
    kind[ord(" ")] = table.shape[1] - 1
    # the old start moves to a new last row, and its number is the new start's
    after = len(table)
    table[table == START] = after
    table = np.vstack([table, table[START]])
    table[START, -1] = after
    return ByteAutomaton(table, kind, np.append(letters.accepting, letters.accepting[START]))
