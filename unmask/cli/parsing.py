"""Words to a command's dataclass, by tyro; what it cannot read is said in one line, with the nearest that it could."""

import io
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import tyro

CONFIG = (tyro.conf.CascadeSubcommandArgs,)


def parse(command: type, prog: str, words: Sequence[str]) -> Any:
    """The command that the words say. Raises ValueError, one line, for words that say none; help exits with 0."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(command, prog=prog, args=list(words), config=CONFIG)
    except SystemExit as end:
        if not end.code:
            raise
    raise ValueError(_fault(command, prog, list(words), said.getvalue()))


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of an error: the name that was probably meant, or all there are."""
    names = list(names)
    close = get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there is {', '.join(names)}"


@dataclass(frozen=True)
class Page:
    """A help page as data: the names of options and subcommands in it."""

    options: set[str]
    names: list[str]


def page(command: type, prog: str, context: Sequence[str] = ()) -> Page:
    """The help behind some subcommands."""
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(io.StringIO()):
            tyro.cli(command, prog=prog, args=[*context, "--help"], config=CONFIG)
    except SystemExit:
        pass
    lines = said.getvalue().splitlines()
    options = {name for line in lines if re.match(r"\W{2}-", line) for name in re.findall(r"(?<!\S)--[\w.-]+", line)}
    return Page(options, [found[1] for line in lines if (found := re.match(r"\W{4}[•*] ([\w-]+)", line))])


def _fault(command: type, prog: str, words: list[str], said: str) -> str:
    """What is wrong with the words, by tyro's box `said` and the help at the place they lead to."""
    context, here = [], page(command, prog)
    for word in words:
        if word in here.names:
            context, before = [*context, word], here
            here = page(command, prog, context)
            here = Page(here.options, [name for name in here.names if name not in before.names] or here.names)
    place = " ".join([prog, *context])
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and len(name) > 2 and name not in here.options:
            return _unknown_option(command, prog, context, name, here)
    text = _text(said)
    strange = text.partition("Unrecognized options:")[2].replace(",", " ").split()
    if word := next((word for word in words if word in strange and word not in context), None):
        return f"{place} does not know {word!r}" + (
            nearest(word, here.names) if here.names else f": see {place} --help"
        )
    return _reworded(text, place)


def _unknown_option(command: type, prog: str, context: list[str], name: str, here: Page) -> str:
    place = " ".join([prog, *context])
    siblings = page(command, prog, context[:-1]).names if context else here.names
    owners = [other for other in siblings if name in page(command, prog, [*context[:-1], other]).options]
    if owners:
        return f"{place} has no option {name}: it belongs to {', '.join(owners)}"
    if close := get_close_matches(name, sorted(here.options), n=1):
        return f"{place} has no option {name}; did you mean {close[0]}?"
    return f"{place} has no option {name}: see {place} --help"


def _text(box: str) -> str:
    """The words of tyro's box below its title; a rule, drawn in either of its two styles, is an end of line."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)  # coloured where standard output is a terminal
    inner = [line.strip("│╭╰╮╯─ ") for line in plain.splitlines()[1:]]
    return " ".join(line if set(line) - {"-"} else "\n" for line in inner).strip()


PHRASES = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 \2: not a whole number"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 \2: not a number"),
    (r"Error parsing (\S+?):? (.*)", r"\1: \2"),
    (r"Missing from (.*?): (.*?) \(required\)(.*)", r"\1 needs \2\3"),
    (r"Missing value for argument '(\S+)'\. Expected 1 values?\.", r"\1 needs a value"),
    (r"Missing value for argument '(\S+)'\. Expected (\d+) values\.", r"\1 needs \2 values"),
    (r"invalid choice (\S+) for argument '(\S+)'\. Expected one of \((.*?),?\)\.", r"\2 \1: choose one of \3"),
    (r"Expected one of\s+\{(.*?)\}\.", r"say which: \1"),
)


def _reworded(text: str, place: str) -> str:
    first = text.partition("\n")[0].strip()
    for pattern, ours in PHRASES:
        if re.fullmatch(pattern, first):
            return re.sub(pattern, ours, first) + f" (see {place} --help)"
    return f"{first or 'these options cannot be read'} (see {place} --help)"
