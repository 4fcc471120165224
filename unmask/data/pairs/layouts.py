"""What a row says: published layouts of fine-tuning sets, turned into one.

An example is either plain text, given and answered in turn, or a chat, which a template writes out (templates.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unmask.files import Row

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
         "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system"}  # fmt: skip


@dataclass(frozen=True)
class Plain:
    """A given text and its answer, written one after the other as they are."""

    prompt: str
    answer: str
    question: str = ""
    """What several examples of one question share, where that is not the prompt."""


@dataclass(frozen=True)
class Between:
    """An answer between two given texts, of which the first may be empty."""

    prompt: str
    answer: str
    suffix: str


@dataclass(frozen=True)
class Chat:
    """Messages (role, content), role system, user or assistant; what the assistant says is learnt."""

    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Blanks:
    """A text of which random spans are the answer, drawn by its number (see `blanked`)."""

    text: str


Example = Plain | Chat | Between | Blanks


@dataclass(frozen=True)
class Reading:
    """How rows are read."""

    passes: int = 1
    """GSM8K: 1 learns question -> chain #### answer; 2 learns question -> chain and question, chain -> answer, as
    SMDM's recipe decodes in two passes."""
    turns: int | None = None
    """Only so many of a chat's answers are kept (SMDM fine-tunes on ShareGPT's first turn: 1)."""

    def __post_init__(self) -> None:
        if self.passes not in (1, 2) or (self.turns is not None and self.turns < 1):
            raise ValueError(f"{self}: passes are 1 or 2, turns at least 1")

    def __call__(self, row: Row) -> list[Example]:
        """The examples of a row. Raises ValueError, saying why, for one that has no known layout or lacks an answer."""
        filled = {key for key, value in row.items() if value is not None}  # tables have every column in every row
        for has in (filled, row.keys()):
            for keys, read in LAYOUTS:
                if has >= set(keys):
                    return read(row, self)
        known = "; ".join(", ".join(keys) for keys, _ in LAYOUTS)
        raise ValueError(f"has {', '.join(map(str, row)) or 'nothing'}, no known layout ({known})")


def _plain(prompt: str, answer: str) -> Callable[[Row, Reading], list[Example]]:
    def read(row: Row, reading: Reading) -> list[Example]:
        given, answered = text_of(row, prompt, empty=True), text_of(row, answer)
        _nothing_before(row)
        if found := _reasoning(answered):
            return reasoned(given, *found, passes=reading.passes)
        return [Plain(given, answered)]

    return read


def _between(answer: str) -> Callable[[Row, Reading], list[Example]]:
    def read(row: Row, reading: Reading) -> list[Example]:
        suffix = text_of(row, "suffix", empty=True)
        if not suffix:
            return _plain("prompt", answer)(row, reading)
        _nothing_before(row)
        return [Between(text_of(row, "prompt", empty=True), text_of(row, answer), suffix)]

    return read


def _reasoning(answer: str) -> tuple[str, str] | None:
    """The chain and the one word behind its last ####; None for what is no such answer."""
    chain, found, last = answer.rpartition("####")
    words = last.split() if found else []
    return (chain, words[0]) if len(words) == 1 else None


def reasoned(question: str, chain: str, answer: str, *, passes: int) -> list[Example]:
    """GSM8K's question and `chain #### answer`, in the examples of one pass or of two."""
    question, chain = asked(question), chain.strip()
    if passes == 1:
        return [Plain(question, f"{chain}\n#### {answer}")]
    return [Plain(question, chain, question), Plain(second_pass(question, chain), f" {answer}", question)]


def asked(question: str) -> str:
    """How a question of GSM8K is written before its chain."""
    return f"{question.strip()}\n"


def second_pass(question: str, chain: str) -> str:
    """What the second pass is given: the question as `asked`, and the chain."""
    return f"{question}{chain.strip()}\n####"


def _question(row: Row, reading: Reading) -> list[Example]:
    question, answer = text_of(row, "question"), text_of(row, "answer")
    if found := _reasoning(answer):
        _nothing_before(row)
        return reasoned(question, *found, passes=reading.passes)
    return _chat(row, [("user", question), ("assistant", answer)], reading)


def _alpaca(output: str) -> Callable[[Row, Reading], list[Example]]:
    def read(row: Row, reading: Reading) -> list[Example]:
        more = text_of(row, "input", empty=True) if row.get("input") is not None else ""
        user = "\n\n".join(part for part in (text_of(row, "instruction"), more.strip()) if part)
        return _chat(row, [("user", user), ("assistant", text_of(row, output))], reading)

    return read


def _messages(key: str, role: str, content: str) -> Callable[[Row, Reading], list[Example]]:
    def read(row: Row, reading: Reading) -> list[Example]:
        turns = row[key]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError(f"{key!r} is no list of messages")
        messages = []
        for turn in turns:
            who = ROLES.get(str(turn.get(role)))
            if who is None:
                raise ValueError(f"a message from {turn.get(role)!r}: known are {', '.join(ROLES)}")
            messages.append((who, text_of(turn, content)))
        return _chat(row, messages, reading)

    return read


def _before(row: Row) -> list[tuple[str, str]]:
    """What stands before the messages: `system`, and earlier turns in pairs, `history` (LLaMA-Factory's names)."""
    system = text_of(row, "system", empty=True) if row.get("system") is not None else ""
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise ValueError("'history' is no list of questions with their answers")
    said = [text_of({"history": text}, "history") for turn in history for text in turn]
    turns = [(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]
    return [("system", system), *turns] if system.strip() else turns


def _nothing_before(row: Row) -> None:
    if _before(row):
        raise ValueError("'system' or 'history' beside plain text, which only a chat has a place for")


def _chat(row: Row, messages: Sequence[tuple[str, str]], reading: Reading) -> list[Example]:
    """Checked: a system message first or never, then user and assistant in turn; what follows no answer is left out."""
    messages = [*_before(row), *messages]
    talk = [message for message in messages if message[0] != "system"]
    if any(role == "system" for role, _ in messages[1:]):
        raise ValueError("a system message that is not the first")
    if talk and talk[0][0] != "user":
        talk = talk[1:]  # ShareGPT's conversations are pieces of longer ones, some begin with an answer
    if any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(talk)):
        raise ValueError("user and assistant do not take turns")
    answers = min(len(talk) // 2, reading.turns or len(talk))
    if not answers:
        raise ValueError("no answer")
    return [Chat((*(m for m in messages[:1] if m[0] == "system"), *talk[: 2 * answers]))]


def text_of(row: Row, key: str, empty: bool = False) -> str:
    """A row's text. Raises ValueError for what is none, is empty, or cannot be written as UTF-8."""
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {'missing' if value is None else f'a {type(value).__name__}'}, no text")
    if not value.strip() and not empty:
        raise ValueError(f"{key!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key!r} holds half a surrogate pair, which UTF-8 cannot carry") from None
    return value.replace("\r\n", "\n").replace("\r", "\n")


LAYOUTS: tuple[tuple[tuple[str, ...], Callable[[Row, Reading], list[Example]]], ...] = (
    (("messages",), _messages("messages", "role", "content")),
    (("conversations",), _messages("conversations", "from", "value")),
    (("prompt", "suffix", "completion"), _between("completion")),
    (("prompt", "suffix", "response"), _between("response")),
    (("prompt", "completion"), _plain("prompt", "completion")),
    (("prompt", "response"), _plain("prompt", "response")),
    (("question", "answer"), _question),
    (("instruction", "output"), _alpaca("output")),
    (("instruction", "response"), _alpaca("response")),
    (("text",), lambda row, reading: [Blanks(text_of(row, "text"))]),
)
"""Names of a row's fields, and how it is read: the first that fits."""
