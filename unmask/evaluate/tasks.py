"""The eight tasks of SMDM (arXiv 2410.18514, section 5): where lm-evaluation-harness describes them, what was
published, local files in place of the hub, and the command that runs them.

A local file gives rows with the hub's own columns, so that the prompt, the answers and the metric stay those of
lm-evaluation-harness.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from unmask import ranks
from unmask.checkpoint import Told
from unmask.evaluate.comparing import without_values
from unmask.files import Row, writable, write_json
from unmask.log import console, progress, say
from unmask.rehearsal import Count, rehearsed

LETTERS = "ABCDE"


@dataclass(frozen=True)
class Local:
    """A file of a folder of local data, and how its rows are read."""

    path: str
    read: Callable[[Path], Iterator[Row]]
    changes: tuple[tuple[str, Any], ...] = ()
    """Entries of the task's description that such rows need changed."""


@dataclass(frozen=True)
class Task:
    """One benchmark."""

    folder: str
    """In lm_eval/tasks."""
    local: Local | None = None
    published: tuple[float, float] | None = None
    """Accuracy in per cent of SMDM's 220M MDM, without and with unsupervised guidance, where known here."""


def _json(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise ValueError(f"{path}, line {number}: not JSON") from None


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


def _lettered(question: str, texts: Sequence[str], answer: str, name: str = "question") -> Row:
    texts = [text.strip() for text in texts]
    return {name: question, "choices": {"text": texts, "label": list(LETTERS[: len(texts)])}, "answerKey": answer}


def _hellaswag(path: Path) -> Iterator[Row]:
    """Six lines an example: context, label, four endings; already cleaned."""
    lines = iter(_lines(path))
    while block := list(islice(lines, 6)):
        if len(block) < 6 or block[1] not in ("0", "1", "2", "3"):
            raise ValueError(f"{path}: expected six lines an example (context, label, four endings), found {block[:2]}")
        yield {"query": block[0], "label": block[1], "choices": block[2:]}


def _piqa(path: Path) -> Iterator[Row]:
    """The questions, and their labels in a file beside."""
    labels = _lines(path.with_name("valid-labels.lst"))
    for row, label in zip(_json(path), labels, strict=True):
        yield {**row, "label": int(label)}


def _openbookqa(path: Path) -> Iterator[Row]:
    """Columns: id, question, choices as "(A) … (B) …", question and choices, letter."""
    for line in _lines(path)[1:]:
        _, question, choices, _, answer = line.split("\t")
        yield _lettered(question, re.split(r"\([A-D]\) ", choices)[1:], answer, "question_stem")


def _boolq(path: Path) -> Iterator[Row]:
    for row in _json(path):
        passage = row["prompt"].removeprefix("passage: ").removesuffix("\nquestion: {}")
        yield {"passage": passage, "question": row["subject"], "label": int(row["target_new"]["str"] == "True")}


def _instructions(path: Path) -> Iterator[tuple[str, list[str], int]]:
    """(question, options, index of the answer) of instructions that hold their options."""
    for row in json.loads(path.read_text(encoding="utf-8")):
        asked, options = row["instruction"].split("\n\nAnswer1: ")
        question = asked.removeprefix("Please choose the correct answer to the question: ")
        texts = re.split(r" ?Answer\d: ", options.split("\n\nAnswer format:")[0])
        yield question, texts, int(row["answer"].removeprefix("answer")) - 1


def _arc(path: Path) -> Iterator[Row]:
    for question, texts, answer in _instructions(path):
        yield _lettered(question, texts, LETTERS[answer])


def _social_iqa(path: Path) -> Iterator[Row]:
    for asked, texts, answer in _instructions(path):
        # the prompt joins context and question by a blank: where they are parted makes no difference to it
        context, _, question = asked.rpartition(" ")
        options = dict(zip(("answerA", "answerB", "answerC"), texts, strict=True))
        yield {"context": context, "question": question, **options, "label": str(answer + 1)}


TASKS = {
    "arc_easy": Task("arc", Local("multiple_choice/ARC-Easy.test.json", _arc)),
    "boolq": Task("super_glue/boolq", Local("boolq/validation.jsonl", _boolq), (61.5, 62.2)),
    "hellaswag": Task("hellaswag", Local("hellaswag/hellaswag_val_full.txt", _hellaswag, (("process_docs", None),))),
    "openbookqa": Task("openbookqa", Local("openbookqa/test.tsv", _openbookqa), (27.0, 34.2)),
    "piqa": Task("piqa", Local("piqa/valid.jsonl", _piqa)),
    "race": Task("race"),
    "social_iqa": Task("siqa", Local("multiple_choice/social_i_qa.test.json", _social_iqa), (36.9, 37.4)),
    "lambada_openai": Task("lambada", Local("lambada/lambada_test.jsonl", _json), (36.0, 41.0)),
}


def local_file(name: str, folder: Path) -> Path | None:
    """FOLDER/NAME.jsonl, of rows with the hub's columns; else the file as the data set is published; else None."""
    local = TASKS[name].local if name in TASKS else None
    files = [folder / f"{name}.jsonl"] + ([folder / local.path] if local else [])
    return next((file for file in files if file.is_file()), None)


def local_rows(name: str, folder: Path) -> tuple[list[Row], Row, Path]:
    """(rows with the hub's columns, changes of the task's description, file) of a task from local files.

    Raises ValueError where there is no file, or it is not what it should be.
    """
    path = local_file(name, folder)
    if path is None:
        raise ValueError(f"{folder} has no {name}.jsonl: put it there, leave out --local, or name other --tasks")
    local = TASKS[name].local if name in TASKS else None
    if local is None or path.name == f"{name}.jsonl":
        local = Local(path.name, _json)
    try:
        rows = list(local.read(path))
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: {'a row is no object' if rows else 'no rows'}")
        if bare := next((i for i, row in enumerate(rows, 1) if rows[0].keys() - row.keys()), None):
            absent = ", ".join(sorted(rows[0].keys() - rows[bare - 1].keys()))
            raise ValueError(f"{path}, row {bare}: no question of {name} (without {absent}, which row 1 has)")
        return rows, dict(local.changes), path
    except (KeyError, IndexError, TypeError, ValueError) as error:
        what = str(error) if str(error).startswith(str(path)) else f"{path}: not in the published layout ({error!r})"
        raise ValueError(what) from None


def table(rows: Sequence[Row]) -> str:
    """The rows of one run as text, a line a task, beside the published figures; accuracies in per cent."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines = [["task", "questions", *metrics, "± maskings", "cut", "SMDM 220M", "guided"]]
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = {row["metric"]: row for row in rows if row["task"] == task}
        first = next(iter(mine.values()))
        noise = "" if first["stderr_mc"] is None else f"{first['stderr_mc']:.2f}"
        published = TASKS[task].published if task in TASKS else None
        line = [task, f"{first['documents']:,}", *(_value(mine.get(metric)) for metric in metrics)]
        line += [noise, f"{first['cut'] / first['requests']:.0%}"]
        lines.append(line + ([f"{figure:.1f}" for figure in published] if published else ["", ""]))
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns[1:]]
    names = [cell.ljust(max(map(len, columns[0]))) for cell in columns[0]]
    return "\n".join("  ".join(line).rstrip() for line in zip(names, *padded, strict=True))


def _value(row: Row | None) -> str:
    if row is None:
        return ""
    scale, digits = (100, ".1f") if row["metric"].startswith("acc") else (1, ".4g")
    error = "" if row["stderr"] is None else f" ± {scale * row['stderr']:{digits}}"
    return f"{scale * row['value']:{digits}}{error}"


@dataclass(frozen=True)
class EvaluateTasks:
    """Measure a model on tasks of lm-evaluation-harness, by default the eight of SMDM's paper, beside its figures.

    `unmask evaluate tasks --checkpoint runs/tiny --local data/tasks`
    """

    checkpoint: Path
    """A run folder, a published file or folder, hf://owner/repository[/file], "builtin" or "builtin-ar"."""
    tasks: tuple[str, ...] | None = None
    """Names known to lm-evaluation-harness; by default SMDM's eight, of which local files need not have all."""
    local: Path | None = None
    """Folder of local files in place of the hub: NAME.jsonl with the hub's columns, or the files as published."""
    limit: int | None = None
    """Ask the first questions of each task only."""
    shots: int = 0
    """Examples before each question."""
    estimator: Literal["bound", "chain"] = "bound"
    """Likelihood of every answer: Monte Carlo over maskings of it, or the exact chain rule from the left."""
    draws: int = 128
    """Maskings an answer."""
    seed: int = 0
    """What is random is keyed by it: the same seed gives the same result."""
    tokens: int = 8192
    """Tokens a network call."""
    length: int | None = None
    """Tokens the model sees; by default what the checkpoint was trained with."""
    guidance: float = 0.0
    """Weight of classifier-free guidance by the context (unsupervised: it is masked for comparison); twice the cost."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto takes the first GPU there is."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the network's weights."""
    told: Annotated[Told, tyro.conf.OmitArgPrefixes] = field(default_factory=Told)
    cache: Path | None = None
    """Folder of answers already given: a run that was killed goes on from them."""
    dry_run: bool = False
    """Say what it would cost, judged by its first seconds, and stop."""
    out: Path | None = None
    """Write the rows as a result file, for `unmask report`."""
    json: bool = False
    """Print rows for machines."""

    def run(self) -> None:
        try:
            from unmask.evaluate.harness import Harness, evaluate_tasks
        except ModuleNotFoundError as error:
            raise ValueError(f'{error.name} is not installed: pip install "unmask[eval]"') from None
        writable(self.out)
        harness = Harness(
            self.told.load(self.checkpoint, self.device, getattr(torch, self.dtype)),
            estimator=self.estimator,
            draws=self.draws,
            seed=self.seed,
            length=self.length,
            tokens=self.tokens,
            guidance=self.guidance,
        )
        asked: Row = {"names": self.tasks, "local": self.local, "limit": self.limit, "shots": self.shots}
        if self.dry_run:
            model = harness.model

            def work(counted: Count, told: Callable[[int, int], None]) -> None:
                evaluate_tasks(harness.of(counted(model), told), **asked)

            return rehearsed(work).tell(json=self.json)
        with progress("tasks", "tokens") as bar:
            rows = evaluate_tasks(harness.of(harness.model, bar), cache=self.cache, **asked)
        if self.tasks is None and (absent := TASKS.keys() - {row["task"] for row in rows}):
            console.print(f"{self.local}: no file of {', '.join(sorted(absent))}", soft_wrap=True)
        if self.out is not None and ranks.rank() == 0:
            write_json(self.out, {"rows": rows})
        for each in map(without_values, rows) if self.json else [table(rows)]:
            say(each)
