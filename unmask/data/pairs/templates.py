"""Chat templates: messages to given and answered text, by Jinja as Hugging Face tokenizers carry them.

Contents go through the template as stand-ins, so that what a user writes is never read as the template's own words or
special tokens, and so that it is known which of the text is an answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unmask.data.tokenizer import Tokenizer
from unmask.files import read_json

DEFAULT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}User: {{ message['content'] }}\n"
    "{% else %}Assistant: {{ message['content'] }}{{ eos_token }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""What is used where the tokenizer has none. The space before an answer is the answer's."""
STAND_IN = "\ue000{}\ue001"
FOUND = re.compile("(\ue000[0-9]+\ue001)")
TODAY = "strftime_now would write today's date, another text each day: write a date in its place"
TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


@dataclass(frozen=True)
class Piece:
    """Some text of a written-out chat."""

    text: str
    answer: bool
    special: bool = False
    """Whether names of special tokens in it stand for these: only in the template's own words."""


class Generation(Extension):
    """{% generation %} … {% endgeneration %}, by which transformers knows what is learnt: what is inside is written."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class Template:
    """A Jinja chat template, and the names of the special tokens that it may write."""

    source: str = DEFAULT
    begin: str = ""
    end: str = ""
    specials: tuple[str, ...] = ()

    def __call__(self, messages: Sequence[tuple[str, str]], *, ask: bool = False) -> list[Piece]:
        """The chat in pieces that, joined, are its text; with `ask`, up to where the next answer begins.

        An answer is what the assistant says with the blank before it and, maybe behind blanks, the special token behind
        it. Raises ValueError where the template refuses or fails, or leaves out a message.
        """
        compiled = self._compiled
        stand_ins = [{"role": role, "content": STAND_IN.format(i)} for i, (role, _) in enumerate(messages)]
        try:
            text = compiled.render(
                messages=stand_ins,
                add_generation_prompt=ask,
                bos_token=self.begin,
                eos_token=self.end,
                tools=None,
                documents=None,
            )
        except Exception as error:  # what a template computes may fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"the chat template refuses: {reason}") from None
        pieces, seen, behind = [], [], False
        for part in FOUND.split(text):
            if FOUND.fullmatch(part):
                seen.append(i := int(part[1:-1]))
                behind = messages[i][0] == "assistant"
                _move_blank(pieces, behind)
                pieces.append(Piece(messages[i][1], behind))
            elif part:
                blanks = len(part) - len(part.lstrip())
                closed = max((blanks + len(name) for name in self.specials if part.startswith(name, blanks)), default=0)
                if behind and closed:
                    pieces.append(Piece(part[:closed], True, True))
                pieces.append(Piece(part[closed if behind else 0 :], False, True))
        if seen != list(range(len(messages))):
            raise ValueError("the chat template leaves out a message or changes their order")
        return [piece for piece in pieces if piece.text]

    @cached_property
    def _compiled(self) -> jinja2.Template:
        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        # as transformers has it, but for the day, which templates that test whether it is defined can do without
        words = {"raise_exception": refuse, "strftime_now": jinja2.Undefined(hint=TODAY)}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        try:
            return environment.from_string(self.source, globals=words)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template is no Jinja ({error}): give another") from None


def _move_blank(pieces: list[Piece], answer: bool) -> None:
    """A blank before an answer goes with it, as tokenizers read words."""
    if answer and pieces and pieces[-1].text.endswith(" "):
        last = pieces.pop()
        pieces += [Piece(last.text[:-1], last.answer, last.special), Piece(" ", True)]


def read_template(file: Path | str) -> str:
    """A file with a chat template. Raises ValueError, naming it, where it is not there, no text, or writes no chat."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        Template(text)([("user", "a question"), ("assistant", "its answer")])
        return text
    except OSError as error:
        raise ValueError(f"chat template {file}: {error.strerror}: give a file with a Jinja chat template") from None
    except UnicodeDecodeError:
        raise ValueError(f"chat template {file}: not UTF-8; save it as UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def template_of(tokenizer: Path | str) -> Template:
    """The template that a tokenizer came with (chat_template.jinja or tokenizer_config.json beside it), or ours."""
    folder = Path(tokenizer)
    folder = folder if folder.is_dir() else folder.parent
    if (folder / CHAT_TEMPLATE).is_file():
        return Template(read_template(folder / CHAT_TEMPLATE))
    if (folder / TOKENIZER_CONFIG).is_file():
        source = read_json(folder / TOKENIZER_CONFIG).get("chat_template")
        if isinstance(source, list):  # several, by name
            source = next((each["template"] for each in source if each.get("name") == "default"), None)
        if isinstance(source, str):
            return Template(source)
    return Template()


def named_template(source: str, tokenizer: Tokenizer) -> Template:
    """A template, and the tokenizer's names for what it may write."""
    inner = tokenizer.inner
    specials = tuple(token.content for token in inner.get_added_tokens_decoder().values() if token.special)
    return Template(source, inner.id_to_token(tokenizer.begin) or "", inner.id_to_token(tokenizer.end) or "", specials)
