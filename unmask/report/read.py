"""Result files as data: finding them, reading them, and saying in one line what is wrong with one."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from unmask.files import Row, read_json, read_lines
from unmask.units import finite, number

RESULT = "result.json"
NAMES = ("config.json", "metrics.jsonl", RESULT, "samples.json")
STATED = ("experiment", "scale", "source", "command", "machine", "unmask")  # by the result of an experiment
DIGITS = 6  # of a published number: far below its error
LARGEST = 1 << 28  # bytes of a JSON file that is looked into for results
PERPLEXITY = ("perplexity", "nats", "tokens", "bits_per_byte", "stderr_mc", "stderr_data", "seconds")
GENERATION = (
    "generative_perplexity",
    "stderr",
    "entropy",
    "entropy_stderr",
    "bits_per_byte",
    "nfe",
    "seconds_per_text",
)
TRAIN = ("step", "loss", "lr", "grad_norm", "tokens", "flops", "seconds")
VALIDATION = ("step", "tokens", "flops", "nats_per_token", "stderr")


@dataclass(frozen=True)
class Run:
    """One training run: its configuration and the rows of its metrics, by step."""

    name: str
    where: Path
    config: Row
    train: list[Row]
    validation: list[Row]


@dataclass(frozen=True)
class Findings:
    """All that the given paths hold."""

    runs: list[Run]
    rows: list[Row]  # of every result file, in order
    samples: list[Row]
    claims: list[tuple[str, Row]] = field(default_factory=list)
    """(name, result) of each experiment that is done: its file's name, or its folder's."""


def find(paths: Sequence[Path]) -> Findings:
    """Everything below `paths`, each file read once; of the folder of an experiment that is done, its result alone.

    Raises: ValueError where a path is missing, a file is malformed, or nothing at all is found.
    """
    once: dict[Path, Path] = {}
    content = cache(_peek)
    for path in paths:
        for file in _files(Path(path), content):
            once.setdefault(file.resolve(), file)
    configs: dict[Path, Row] = {}
    metrics: dict[Path, tuple[list, list]] = {}
    claims = {file: result for file in once.values() if (result := _claim(file, content)) is not None}
    named: dict[tuple, Row] = {}
    for file, result in claims.items():
        named.setdefault(_name(file, result), result)
    done = {file.resolve().parent for file in claims if file.name == RESULT}
    rows, samples = [], []
    for real, file in once.items():
        if file in claims or done.intersection(real.parents):
            continue
        if file.suffix == ".jsonl":
            metrics[file] = _metrics(file)
        elif file.name == "config.json":
            configs[file.parent] = clean(_read(read_json, file))
        else:
            more_rows, more_samples = _results(file, content(file) or _read(read_json, file))
            rows += [row for row in more_rows if not (row.get("yardstick") and row in rows)]  # measured once a model
            samples += more_samples
    if not (configs or metrics or rows or samples or claims):
        given = ", ".join(map(str, paths)) or "no path"
        raise ValueError(f"{given}: nothing to report; give run folders or files such as {', '.join(NAMES)}")
    return Findings(_runs(configs, metrics), rows, samples, [(key[0], each) for key, each in named.items()])


def _files(path: Path, content: Callable[[Path], Row]) -> Iterator[Path]:
    """The result files that `path` stands for; folders are searched to any depth, but hidden ones and a run's
    checkpoints, which repeat its configuration.
    """
    if path.is_file():
        yield path
    elif path.is_dir():
        found = {*path.rglob("*.json"), *path.rglob("metrics.jsonl")}
        rank = {name: i for i, name in enumerate(NAMES)}
        for file in sorted(found, key=lambda file: (rank.get(file.name, len(NAMES)), file)):
            hidden = any(part.startswith(".") or part == "checkpoints" for part in file.relative_to(path).parts)
            if file.is_file() and not hidden and (file.name in NAMES or _holds_results(content(file))):
                yield file
    else:
        raise ValueError(f"{path}: no such file or folder")


def _holds_results(content: Row) -> bool:
    """Whether a file that has a name of its own is a result file; a folder may hold any other JSON."""
    return any(isinstance(content.get(key), list) for key in ("rows", "samples"))


def _claim(file: Path, content: Callable[[Path], Row]) -> Row | None:
    """The result of a whole experiment, None where the file is another one."""
    found = content(file) if file.suffix == ".json" and file.name != "config.json" else {}
    return clean(found) if is_claim(found) else None


def is_claim(content: Row) -> bool:
    """Whether a file holds the result of a whole experiment."""
    return isinstance(content.get("rows"), list) and all(isinstance(content.get(key), str) for key in STATED)


def _name(file: Path, result: Row) -> tuple[str, ...]:
    """What a result is called, and what tells it from another of that name: a published copy is the same."""
    name = file.resolve().parent.name if file.name == RESULT else file.stem
    where = (result["experiment"], result["scale"], shown(result["source"]), result["machine"])
    return name, *where, json.dumps(rounded(result["rows"]))


def shown(source: str) -> str:
    """A path without what lies above it on the machine at hand."""
    return Path(source).name if Path(source).is_absolute() else source


def rounded(value: object) -> object:
    """JSON data with numbers to as many digits as mean something."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def _peek(file: Path) -> Row:
    """What a file holds if that is a JSON object, else nothing."""
    try:
        if file.stat().st_size > LARGEST:
            return {}
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _runs(configs: dict[Path, Row], metrics: dict[Path, tuple[list, list]]) -> list[Run]:
    """One run a folder that has a configuration, metrics or both; equal names get their folder's name too."""
    homes = [(file.parent, file) for file in metrics]
    homes += [(folder, None) for folder in configs if folder not in {file.parent for file in metrics}]
    found = []
    for folder, file in sorted(homes, key=lambda home: home[0]):
        config = configs.get(folder, {})
        name = config.get("name")
        name = name if isinstance(name, str) and name.strip() else clean(folder.name)
        found.append(Run(name, folder, config, *(metrics[file] if file else ([], []))))
    names = [run.name for run in found]
    return [
        Run(f"{run.name} ({clean(run.where.name)})", run.where, run.config, run.train, run.validation)
        if names.count(run.name) > 1
        else run
        for run in found
    ]


def _results(file: Path, content: Row) -> tuple[list[Row], list[Row]]:
    """The "rows" and "samples" of a result file; a perplexity row without a model is named after its folder."""
    content = clean(content)
    if "cell" in content:  # of an experiment that is not done, whose rows mean nothing by themselves
        return [], []
    if not ("rows" in content or "samples" in content):
        raise ValueError(f"{file}: has neither 'rows' nor 'samples'; give a run folder or a result file")
    rows, samples = (content.get(key, []) for key in ("rows", "samples"))
    for key, entries in (("rows", rows), ("samples", samples)):
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            raise ValueError(f"{file}: '{key}' must be a list of objects")
    for i, row in enumerate(rows):
        row.setdefault("experiment", "unnamed")
        if row["experiment"] == "perplexity":
            row.setdefault("model", clean(file.parent.name))
            _check(row, f"{file}, row {i + 1}", ("perplexity",), PERPLEXITY)
        elif row["experiment"] == "generation":  # a perplexity of texts is shown beside their entropy or not at all
            _check(row, f"{file}, row {i + 1}", ("generative_perplexity", "entropy"), GENERATION)
    for i, sample in enumerate(samples):
        sample["where"] = f"{file}, sample {i + 1}"
    return rows, samples


def _metrics(file: Path) -> tuple[list[Row], list[Row]]:
    """The train and validation rows of a metrics.jsonl, by step; a step logged again (a resumed run) counts once.

    Rows of other kinds are left out.
    """
    train: dict[float, Row] = {}
    validation: dict[float, Row] = {}
    for i, row in enumerate(_read(read_lines, file)):
        where = f"{file}, line {i + 1}"
        if row.get("kind") == "train":
            _check(row, where, ("step", "loss"), TRAIN)
            train[row["step"]] = row
        elif row.get("kind") == "validation":
            _check(row, where, ("step", "nats_per_token"), VALIDATION)
            validation[row["step"]] = clean(row)
    return [train[step] for step in sorted(train)], [validation[step] for step in sorted(validation)]


def _check(row: Row, where: str, needed: Sequence[str], numeric: Sequence[str]) -> None:
    """`needed` keys are there, `numeric` ones hold numbers, or null where a number was not finite."""
    for key in needed:
        if key not in row or (key == "step" and finite(row[key]) is None):
            raise ValueError(
                f"{where}: '{key}' must be a number, and is {_short(row[key]) if key in row else 'missing'}"
            )
    for key in numeric:
        if row.get(key) is not None and number(row[key]) is None:
            raise ValueError(f"{where}: '{key}' must be a number, not {_short(row[key])}")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _read(reader: Callable[[Path], Any], file: Path) -> Any:
    """What `reader` finds in `file`; JSON nested deeper than Python's stack is a fault of the file."""
    try:
        return reader(file)
    except RecursionError:
        raise ValueError(f"{file}: not JSON (nested too deep)") from None


def clean(value: Any) -> Any:
    """`value` with what neither HTML nor XML can carry (controls, half surrogates) replaced by U+FFFD."""
    if isinstance(value, str):
        bad = {c for c in value if (c < " " and c not in "\t\n\r") or c in "\x7f\ufffe\uffff"}
        bad |= {c for c in value if "\x80" <= c <= "\x9f" or "\ud800" <= c <= "\udfff"}
        return value.translate(dict.fromkeys(map(ord, bad), "\ufffd")) if bad else value
    if isinstance(value, dict):
        return {clean(key): clean(entry) for key, entry in value.items()}
    return [clean(entry) for entry in value] if isinstance(value, list) else value
