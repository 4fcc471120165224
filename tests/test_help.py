"""Help is the documentation: every option of every command has a text and a default."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import get_args, get_type_hints

import pytest

from unmask.cli import COMMANDS, main
from unmask.recipes import RECIPES


def options(kind: object) -> Iterator[tuple[type, str]]:
    """(dataclass, field) of everything below a command that is an option of its own."""
    for inner in get_args(kind):
        yield from options(inner)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return
    for field in dataclasses.fields(kind):
        below = list(options(get_type_hints(kind, include_extras=True)[field.name]))
        yield from below or [(kind, field.name)]


@cache
def described(kind: type) -> dict[str, str]:
    """The text behind each field of a dataclass, in its source."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        try:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        except (OSError, TypeError):  # made, not written
            continue
        assert isinstance(body, ast.ClassDef)
        for line, after in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                text = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
                found[line.target.id] = text if isinstance(text, str) else ""
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_text(command):
    for words in [[name] for name in RECIPES] if command == "train" else [[]]:
        for kind, name in options(COMMANDS[command].load(words)):
            assert described(kind).get(name, "").strip(), f"{kind.__name__}.{name} has no text: unmask {command} --help"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_defaults(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"`unmask {command}" in said or command == "evaluate"  # whose subcommands have them
    assert "(default: " in said or command in ("completion", "evaluate", "train")


def test_a_field_without_a_text_is_found():
    @dataclasses.dataclass
    class Inner:
        said: int = 0
        """What it is."""
        silent: int = 0

    @dataclasses.dataclass
    class Outer:
        inner: Inner | None = None

    assert [name for kind, name in options(Outer) if not described(kind).get(name)] == ["silent"]
