"""Rows of results as tables of text, ready for the page's template."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.report.read import Run
from unmask.units import MISSING, count, duration, finite, number, plain, power, with_error

BOUNDS = {"exact": "", "upper bound": "≤ "}


@dataclass(frozen=True)
class Table:
    """Columns (a label, and whether they hold numbers) and groups of rows under a heading, "" for none."""

    columns: list[tuple[str, bool]]
    groups: list[tuple[str, list[list[str]]]]
    notes: list[tuple[str, str]] = field(default_factory=list)
    """How each row was measured: (label, words)."""


LIKE = ("corpus", "split", "protocol", "tokenizer", "data")  # what rows must share for their perplexities to compare


def perplexities(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The rows that share LIKE, best first, with a label of their own and both errors in perplexity.

    Delta method: the perplexity exp(nats / tokens) has the error perplexity * stderr / tokens.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        value, tokens = finite(row["perplexity"]), finite(row.get("tokens"))
        scale = value / tokens if value and tokens else None
        errors = {
            key: abs(scale * error) if scale and (error := finite(row.get(key))) is not None else None
            for key in ("stderr_mc", "stderr_data")
        }
        entry = {"row": row, "perplexity": math.nan if value is None else value, "bound": row.get("bound"), **errors}
        groups.setdefault(tuple(say(row.get(key)) for key in LIKE), []).append(entry)
    for entries in groups.values():
        entries.sort(key=lambda entry: (math.isnan(entry["perplexity"]), entry["perplexity"]))
        for entry, label in zip(entries, labels_of([entry["row"] for entry in entries]), strict=True):
            entry["label"], entry["text"] = label, _perplexity(entry)[0]
    return groups


def labels_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each row's model, followed by what tells rows of the same model apart."""
    labels = [say(row.get("model")) for row in rows]
    for key in ("estimator", "draws", "guidance", "precision", "seed"):
        for label in {label for label in labels if labels.count(label) > 1}:
            same = [i for i, other in enumerate(labels) if other == label]
            if len({say(rows[i].get(key)) for i in same}) > 1:
                for i in same:
                    value = say(rows[i].get(key))
                    labels[i] += f", {value}" if key in ("estimator", "precision") else f", {key} {value}"
    return labels


def title(*like: str) -> str:
    """What a group of perplexities is of: its values of LIKE, those that are stated."""
    corpus, split, protocol, tokenizer, data = like
    parts = [corpus, f"{split} split", f"protocol {protocol}", f"tokenizer of {tokenizer}", f"text {data}"]
    return ", ".join(part for part, value in zip(parts, like, strict=True) if value != MISSING) or MISSING


def heading(*like: str) -> tuple[str, str]:
    """`title` in two lines: what was scored, and how."""
    corpus, split, *how = like
    return title(corpus, split, MISSING, MISSING, MISSING), title(MISSING, MISSING, *how)


def perplexity_table(groups: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]]) -> Table:
    """All perplexities: the value, its two errors apart, what kind of number it is; the notes say how measured."""
    columns = [("model", False), ("perplexity", True), ("± maskings", True), ("± texts", True)]
    columns += [("bits per byte", True), ("tokens", True), ("kind", False)]
    rows = [(title(*key), [_perplexity_row(entry) for entry in group]) for key, group in groups.items()]
    measured = [(entry["label"], entry["row"]) for group in groups.values() for entry in group]
    return Table(columns, rows, notes(measured, SHOWN))


def _perplexity_row(entry: Mapping[str, Any]) -> list[str]:
    row, bound = entry["row"], entry["bound"]
    return [
        say(row.get("model")),
        *_perplexity(entry),
        plain(row.get("bits_per_byte")),
        plain(row.get("tokens")),
        say(bound),
    ]


def _perplexity(entry: Mapping[str, Any]) -> list[str]:
    """Value, error of the maskings, error of the texts."""
    value, *errors = with_error(entry["perplexity"], entry["stderr_mc"], entry["stderr_data"])
    return [BOUNDS.get(str(entry["bound"]), "") + value, *errors]


SHOWN = ("model", *LIKE, "perplexity", "nats", "tokens", "bits_per_byte", "bytes", "characters", "words")
SHOWN += ("stderr_mc", "stderr_data", "bound")
HIDDEN = ("experiment", "values", "yardstick")  # of every kind of row


def notes(rows: Sequence[tuple[str, Mapping[str, Any]]], shown: Sequence[str]) -> list[tuple[str, str]]:
    """What the rows say beyond the keys `shown`: first what they all share, then each row's own."""
    said = [(label, _words(row, shown)) for label, row in rows]
    common = {key: text for key, text in said[0][1].items() if all(more.get(key) == text for _, more in said)}
    if len(said) < 2:
        common = {}
    own = [(label, ", ".join(text for key, text in words.items() if key not in common)) for label, words in said]
    found = [("all", ", ".join(common.values())), *own]
    return [(label, text) for label, text in dict.fromkeys(found) if text]


def _words(row: Mapping[str, Any], shown: Sequence[str]) -> dict[str, str]:
    """Each key of a row that is not shown elsewhere, keys unknown here included, in words."""
    bare = {"estimator", "policy"}  # what says itself
    words = {}
    for key, value in row.items():
        if key in shown or key in HIDDEN or value is None:
            continue
        text = duration(value) if key.startswith("seconds") and number(value) is not None else say(value, key)
        words[key] = text if key in bare else f"{name(key)} {text}"
    return words


def runs_table(runs: Sequence[Run]) -> Table:
    """What each run is, what it was given, what it used, and where it arrived."""
    columns = [
        ("run", False),
        ("objective", False),
        ("parameters", True),
        ("non-embedding", True),
        ("steps", True),
    ]
    columns += [("tokens", True), ("6ND, FLOPs", True), ("true FLOPs", True), ("time", True)]
    columns += [("validation, nats per token", True)]
    return Table(columns, [("", [_run_row(run) for run in runs])])


def _run_row(run: Run) -> list[str]:
    """Tokens and FLOPs are those spent so far where metrics tell, else the budget's."""
    last = run.train[-1] if run.train else {}
    planned = _get(run.config, "training", "steps")
    steps = [plain(last.get("step"))] if last else []
    steps += [plain(planned)] if number(planned) is not None else []
    done, of = finite(last.get("step")), finite(planned)
    share = done / of if done is not None and of else 1
    tokens, flops_6nd, flops_true = (
        None if (value := finite(_get(run.config, "budget", name))) is None else value * share
        for name in ("tokens", "flops_6nd", "flops_true")
    )
    return [
        run.name,
        say(_get(run.config, "training", "objective")),
        count(_get(run.config, "parameters", "total")),
        count(_get(run.config, "parameters", "non_embedding")),
        " of ".join(steps) or MISSING,
        count(tokens),
        power(flops_6nd),
        power(flops_true),
        duration(last.get("seconds")),
        _arrived(run),
    ]


def _arrived(run: Run) -> str:
    """The last validation: ≤ 3.214 ± 0.011."""
    if not run.validation:
        return MISSING
    row = run.validation[-1]
    value, error = with_error(row["nats_per_token"], row.get("stderr"))
    return BOUNDS.get(str(row.get("bound")), "") + (value if error in (MISSING, "0") else f"{value} ± {error}")


def generic(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Any rows: one column a key, in order of first appearance; `values`, those of single texts, are for files."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in ("experiment", "values")))
    numeric = [all(number(row[key]) is not None for row in rows if row.get(key) is not None) for key in keys]
    cells = [[say(row.get(key), key) for key in keys] for row in rows]
    return Table([(name(key), is_number) for key, is_number in zip(keys, numeric, strict=True)], [("", cells)])


def _get(config: Mapping[str, Any], *path: str) -> Any:
    """The entry at `path`, None where any step of it is missing."""
    found: Any = config
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def name(key: str) -> str:
    return key.replace("_", " ")


def say(value: Any, key: str = "") -> str:
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value or MISSING
    if number(value) is not None and key != "seed":
        return plain(value)
    return json.dumps(value, ensure_ascii=False)
