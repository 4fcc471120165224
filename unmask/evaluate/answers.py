"""Answers to a set of questions, by an MDM or an ARM, in FastChat's format; a file that was cut off goes on.

Every answer belongs to its question and the seed, whatever batch it is written in.
"""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch

from unmask import ranks
from unmask.checkpoint import Model
from unmask.checkpoint.adapting import fingerprint
from unmask.data.pairs import Chat, Plain, Reading, Template, prompt_ids, rows_of
from unmask.data.pairs.layouts import second_pass, text_of
from unmask.evaluate.continuing import text_behind
from unmask.evaluate.exact import same
from unmask.evaluate.writing import counting
from unmask.files import Row, atomic, is_number, read_lines
from unmask.grammar import Form
from unmask.network import Network
from unmask.rehearsal import Cost, rehearsed
from unmask.sampling import Draw, LeftToRight, Policy, RandomOrder, Remasking, inside_of, sample
from unmask.wrappers import Guided

TURNS = 8  # and their passes have numbers of their own, those of later turns far away


@dataclass(frozen=True)
class Question:
    """What is asked: a plain prompt, or a chat's turns one after the other."""

    id: int | str
    turns: tuple[str, ...]
    chat: bool
    references: tuple[str, ...] = ()
    category: str = ""
    as_text: bool = False
    """The reference is compared letter by letter even where it is a number (a row's field `match`: "text")."""
    system: str = ""
    """A chat's system message, which stands before the turns."""

    @property
    def reference(self) -> str | None:
        """The last turn's; None where the turns have fewer."""
        return self.references[len(self.turns) - 1] if len(self.references) >= len(self.turns) else None


@dataclass(frozen=True)
class Asking:
    """How answers are written."""

    policy: Policy | None = None
    """By default exact: a random order, one token at a time (left to right for a causal model)."""
    draw: Draw = field(default_factory=Draw)
    length: int | None = None
    """Tokens of an answer at most; by default all that the block leaves behind the prompt, as in fine-tuning."""
    block: int = 128
    """Tokens of prompt and answer together at most."""
    guidance: float = 0.0
    """Weight of classifier-free guidance by the prompt."""
    passes: int = 1
    """2: first a chain, then, given the chain, the answer (SMDM's decoding of GSM8K)."""
    final: int = 16
    """Tokens of the second pass's answer at most."""
    seed: int = 0
    batch: int = field(default=16, repr=False)
    template: Template = field(default_factory=Template)
    form: Form = field(default_factory=Form, repr=False)
    """What an answer must fit; of two passes the second's."""

    def __post_init__(self) -> None:
        for name in ("final", "batch", "length"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name} {count} must be at least 1")
        least = max(1, self.length or 1, self.final if self.passes == 2 else 1)
        if self.block <= least:
            raise ValueError(f"block {self.block} has no room for a prompt beside {least} tokens: raise it")
        if self.passes not in (1, 2):
            raise ValueError(f"passes {self.passes} must be 1 or 2")
        if not is_number(self.guidance):
            raise ValueError(f"guidance {self.guidance} must be a number")

    def policy_for(self, network: Network) -> Policy:
        """The one stated, or the exact one."""
        return self.policy or (LeftToRight() if network.causal else RandomOrder())


@dataclass(frozen=True)
class Written:
    """The text of an answer, its cost, and whether its prompt had to be cut from the left."""

    text: str
    nfe: int
    cut: bool


def questions_of(source: str, chosen: Callable[[str], bool] = lambda place: True) -> list[Question]:
    """Questions of MT-Bench's format (question_id, turns), GSM8K's, or any layout with prompts and answers: of all
    rows, or of those at `chosen` places.

    Raises ValueError for a row that is none, for two of one question_id, and where there are none.
    """
    found: list[Question] = []
    ids: set[str] = set()
    for number, (place, row) in enumerate(rows_of(source)):
        if not chosen(place):
            continue
        try:
            if not isinstance(row, dict):
                raise ValueError(row.reason)
            found.append(_question(number, row))
            if (name := str(found[-1].id)) in ids:
                raise ValueError(f"a second question of question_id {name}: give each its own")
            ids.add(name)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    if not found:
        raise ValueError(f"{source}: no questions: put some there")
    return found


def _question(number: int, row: Row) -> Question:
    if isinstance(turns := row.get("turns"), list) and turns:
        turns = [text_of({"turns": turn}, "turns") for turn in turns]
        given = row.get("reference") or ()
        references = tuple(map(str, given if isinstance(given, list | tuple) else [given]))
        return Question(row.get("question_id", number), tuple(turns), True, references, str(row.get("category", "")))
    example = Reading()(row)[0]
    name, as_text = row.get("question_id", number), row.get("match") == "text"
    if isinstance(example, Plain):
        return Question(name, (example.prompt,), False, (example.answer,), as_text=as_text)
    if isinstance(example, Chat):
        roles = ("system", "user", "assistant")
        system, asked, answered = (tuple(text for role, text in example.messages if role == who) for who in roles)
        return Question(name, asked, True, answered, as_text=as_text, system="".join(system))
    what = "a text without a question, or one behind its answer"
    raise ValueError(f"{what}: unmask sample --templates fills blanks, of rows without their answers")


def answers(
    model: Model,
    questions: Sequence[Question],
    asking: Asking,
    which: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Row]]:
    """(index, record in FastChat's answer format) of the questions, or some of them, in batches, the shortest first.

    The answer to a question is the same whichever others are asked. Each process writes its share of a batch, and has
    the records of all. `progress(done, total)` counts answers. Raises ValueError for two passes over a chat.
    """
    if asking.passes == 2 and (chat := next((question for question in questions if question.chat), None)):
        raise ValueError(f"question {chat.id!r} is a chat, and two passes are for plain questions: leave out --passes")
    which = range(len(questions)) if which is None else which
    order = sorted(which, key=lambda i: (len(questions[i].turns), len(questions[i].turns[0]), i))
    size = 4 * asking.batch * ranks.world()  # a row's slot goes to the next text: a few batches at once keep calls full
    for start in range(0, len(order), size):
        part, begun = order[start : start + size], time.perf_counter()
        chosen = [part[j] for j in ranks.share(len(part))]

        def told(share: float, done: int = start, count: int = len(part)) -> None:
            if progress is not None:
                progress(done + int(share * count), len(order))

        written = _answered(model, [questions[i] for i in chosen], chosen, asking, told)
        seconds = (time.perf_counter() - begun) / max(1, len(chosen))
        mine = [_record(questions[i], parts, seconds) for i, parts in zip(chosen, written, strict=True)]
        yield from zip(part, ranks.gathered(mine, len(part)), strict=True)
        told(1.0)


def _answered(
    model: Model,
    questions: Sequence[Question],
    numbers: Sequence[int],
    asking: Asking,
    told: Callable[[float], None],
) -> list[list[Written]]:
    """The answers to all turns of some questions: turn after turn, each given what was answered before. `told` hears
    which share of the work is done.
    """
    done: list[list[Written]] = [[] for _ in questions]
    first = replace(asking, form=Form()) if asking.passes == 2 else asking
    turns = max((len(question.turns) for question in questions), default=0)

    def part(before: int) -> Callable[[int, int], None]:
        return lambda written, total: told((before + written / total) / (turns * asking.passes))

    for turn in range(turns):
        here = [i for i, question in enumerate(questions) if turn < len(question.turns)]
        prompts = [_prompt(model, questions[i], done[i], asking) for i in here]
        keys = [(numbers[i] * TURNS + turn % TURNS) * 2 + (turn // TURNS << 40) for i in here]
        written = fill(model, prompts, keys, first, progress=part(turn * asking.passes))
        if asking.passes == 2:
            texts = [second_pass(questions[i].turns[turn], text.text) for i, text in zip(here, written, strict=True)]
            again = [model.tokenizer.encode(text) for text in texts]
            last = fill(model, again, [key + 1 for key in keys], asking, asking.final, part(2 * turn + 1))
            written = [
                Written(f"{a.text.strip()}\n#### {b.text.strip()}", a.nfe + b.nfe, a.cut or b.cut)
                for a, b in zip(written, last, strict=True)
            ]
        for i, text in zip(here, written, strict=True):
            done[i].append(text)
    return done


def cost(model: Model, questions: Sequence[Question], asking: Asking) -> Cost:
    """What answering would take, judged by the beginning of the first turns."""
    prompts = [_prompt(model, question, (), asking) for question in questions]
    numbers = range(len(prompts))
    first = rehearsed(lambda counted, told: fill(counted(model), prompts, numbers, asking, progress=told))
    turns = sum(len(question.turns) for question in questions)
    return first * (asking.passes * turns / len(questions))


def _prompt(model: Model, question: Question, before: Sequence[Written], asking: Asking) -> list[int]:
    if not question.chat:
        return prompt_ids(Plain(question.turns[0], ""), model.tokenizer, asking.template)
    messages = [("system", question.system)] if question.system else []
    messages.append(("user", question.turns[0]))
    for text, turn in zip(before, question.turns[1:], strict=False):
        messages += [("assistant", text.text.strip()), ("user", turn)]
    return prompt_ids(Chat(tuple(messages)), model.tokenizer, asking.template)


def fill(
    model: Model,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    asking: Asking,
    length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Written]:
    """What the model writes behind each prompt, up to its first end token."""
    length, tokenizer = length or asking.length, model.tokenizer
    least = length or max(1, asking.block // 4)  # what a prompt must leave
    seen = [list(prompt)[-(asking.block - least) :] for prompt in prompts]
    canvases = [
        torch.tensor([tokenizer.begin, *ids, *[model.mask_id] * (length or asking.block - len(ids))]) for ids in seen
    ]
    network: Network = model
    if asking.guidance:
        network = Guided.of(model, canvases, asking.guidance, tokenizer.begin if model.causal else None)
    policy = asking.policy_for(model)
    revises = isinstance(inside_of(policy), Remasking)
    samples = sample(
        network,
        canvases,
        policy,
        draw=asking.draw,
        seed=asking.seed,
        sequences=numbers,
        batch=asking.batch,
        end=None if revises else tokenizer.end,
        constraint=asking.form.constraint(tokenizer),
        on_step=counting(canvases, model.mask_id, progress),
    )
    found = []
    for ids, prompt, tokens, nfe in zip(seen, prompts, samples.tokens, samples.nfe.tolist(), strict=True):
        answer = tokens[1 + len(ids) :].tolist()
        answer = answer[: answer.index(tokenizer.end)] if tokenizer.end in answer else answer
        found.append(Written(text_behind(ids, answer, tokenizer), nfe, len(ids) < len(prompt)))
    return found


def answered(
    model: Model,
    questions: Sequence[Question],
    asking: Asking,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """The records of all questions, in their order; `progress(done, total)` counts them."""
    records = dict(answers(model, questions, asking, progress=progress))
    return [records[i] for i in range(len(questions))]


def _record(question: Question, parts: Sequence[Written], seconds: float) -> Row:
    turns = [part.text for part in parts]
    return {
        "question_id": question.id,
        "question": _digest(question),
        "answer_id": hashlib.blake2b(json.dumps([question.id, turns]).encode(), digest_size=11).hexdigest(),
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time.time(),
        "nfe": sum(part.nfe for part in parts),
        "seconds": seconds,
        "prompt_cut": any(part.cut for part in parts),
    }


def answer_file(
    model: Model,
    questions: Sequence[Question],
    asking: Asking,
    out: Path,
    *,
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Write a .jsonl of answers, a line each, and return it in the questions' order; goes on where it was cut off.

    Once all are there, the file is in that order too, and says of each last answer whether it is right, and the
    reference, where there is one. Raises ValueError where the file holds answers of another model or settings, or to
    other questions.
    """
    weights = fingerprint(model.network.state_dict(), repr(model.network.config))
    asked = " ".join([repr(asking), *map(str, asking.form.given().items())])
    law = {"model_id": name, "asking": asked, "weights": weights}
    done: dict[str, Row] = ranks.agreed(lambda: _begun(out, law, questions))
    missing = [i for i, question in enumerate(questions) if str(question.id) not in done]
    there = len(questions) - len(missing)

    def told(count: int, _: int) -> None:
        if progress is not None:
            progress(there + count, len(questions))

    for i, row in answers(model, questions, asking, missing, told):
        done[str(questions[i].id)] = {**law, **row}
        if ranks.rank() == 0:
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a", encoding="utf-8") as file:
                file.write(_line(done[str(questions[i].id)]))
    asked_of = {str(question.id): _compared(done[str(question.id)], question) for question in questions}
    done = asked_of | {name: row for name, row in done.items() if name not in asked_of}
    if ranks.rank() == 0:
        with atomic(out) as file:
            file.writelines(map(_line, done.values()))
    return list(asked_of.values())


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _compared(record: Row, question: Question) -> Row:
    """With what the answer should be, and whether it is."""
    reference = question.reference
    right = None if reference is None else _right(record, question, reference)
    return {**record, "reference": reference, "right": right}


def _right(record: Row, question: Question, reference: str) -> bool:
    return same(record["choices"][0]["turns"][-1], reference, as_text=question.as_text)


def _digest(question: Question) -> str:
    """Of what is asked."""
    asked = json.dumps([question.turns, question.chat, *filter(None, [question.system])])
    return hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()


def _begun(out: Path, law: Row, questions: Sequence[Question]) -> dict[str, Row]:
    """The answers that are there, by question_id; what was cut off is removed from the file."""
    done = _read(out, law)
    if done and done.keys().isdisjoint(str(question.id) for question in questions):
        raise ValueError(f"{out} holds answers to other questions: choose another file or remove it")
    for question in questions:
        if done.get(str(question.id), {}).get("question", _digest(question)) != _digest(question):
            raise ValueError(f"{out}: question_id {question.id} is another question: choose another file or remove it")
    if out.exists():
        with atomic(out) as file:
            file.writelines(map(_line, done.values()))
    return done


def _read(out: Path, law: Row) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for number, row in enumerate(read_lines(out) if out.exists() else [], 1):
        if not ({"question_id", "answer_id", "nfe", "seconds", "prompt_cut"} <= row.keys() and _turns(row)):
            raise ValueError(f"{out}, line {number}: no answer of this command; choose another file")
        other = [key for key in law if row.get(key) != law[key]]
        if other:
            raise ValueError(f"{out} holds answers of another {' and '.join(other)}: choose another file or remove it")
        rows[str(row["question_id"])] = row
    return rows


def _turns(row: Row) -> bool:
    """Whether a record holds texts of turns."""
    try:
        return all(isinstance(text, str) for text in row["choices"][0]["turns"]) and bool(row["choices"][0]["turns"])
    except (KeyError, IndexError, TypeError):
        return False


def references(questions: Sequence[Question]) -> list[str]:
    """Of the last turns. Raises ValueError where a question has none."""
    found = [question.reference for question in questions]
    if bare := [question.id for question, reference in zip(questions, found, strict=True) if reference is None]:
        raise ValueError(f"question {bare[0]!r} has no reference for its last answer: put one there")
    return cast(list[str], found)


def exact_match(questions: Sequence[Question], records: Sequence[Row], name: str) -> Row:
    """Share of the last answers that are the reference (see exact.py), with its binomial standard error, None where all
    are or none is.

    Raises ValueError where a question has no reference.
    """
    right = [
        _right(record, question, reference)
        for question, reference, record in zip(questions, references(questions), records, strict=True)
    ]
    share = statistics.fmean(right)
    return {
        "experiment": "answers",
        "model": name,
        "questions": len(right),
        "exact_match": share,
        "stderr": math.sqrt(share * (1 - share) / len(right)) or None,
        "nfe": statistics.fmean(record["nfe"] for record in records),
        "seconds_per_answer": statistics.fmean(record["seconds"] for record in records),
        "prompts_cut": sum(record["prompt_cut"] for record in records),
        "values": {"right": right, "seconds": [record["seconds"] for record in records]},
    }
