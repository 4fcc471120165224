"""Two result files, row by row: differences with their errors, paired where both rows scored the same windows.

Only like is compared with like: the same corpus, texts and protocol, or the same judge and length of text. Models
with one tokenizer are compared in nats a token, window by window; their texts' luck cancels, and the error of the
difference is far below that of either. With two tokenizers the windows differ: then in bits a byte, as if the texts
had been drawn twice, which is too careful.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from unmask.files import Row, is_number, read_json
from unmask.likelihood.estimate import ratio_variance

# what two rows must share to measure the same thing
KEYS = {"perplexity": ("corpus", "split", "protocol", "data"), "generation": ("judge", "length")}

NUMBERS = {
    "perplexity": ("nats", "tokens", "bits_per_byte"),
    "generation": ("generative_perplexity", "stderr", "entropy", "entropy_stderr"),
}


def read_rows(path: Path) -> list[Row]:
    """The rows of a result file that can be compared. Raises ValueError where there are none."""
    rows = read_json(path).get("rows")
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ValueError(f"{path}: has no list of 'rows'; give a result file of `unmask evaluate`")
    found = comparable(rows, path)
    if not found:
        raise ValueError(f"{path}: no row of {' or '.join(KEYS)} in it")
    return found


def comparable(rows: Sequence[Row], path: Path) -> list[Row]:
    """Those that can be compared of the rows of a file or folder. Raises ValueError for one that lacks something."""
    # n-gram laws and people's texts go along with every row and are not what is compared
    found = [row for row in rows if str(row.get("experiment")) in KEYS and not row.get("yardstick")]
    for row in found:
        for key in (*KEYS[row["experiment"]], *NUMBERS[row["experiment"]]):
            if row.get(key) is None:
                raise ValueError(f"{path}: its row of {row.get('model')} has no {key!r}: measure it again")
        _check(path, row)
    return [{**row, "file": path.stem} for row in found]


def _check(path: Path, row: Row) -> None:
    """What is computed with is a number, what was scored a text. Raises ValueError, naming what is not."""
    where = f"{path}: its row of {row.get('model')}"
    for key in (*NUMBERS[row["experiment"]], "stderr_mc", "stderr_data"):
        value = row.get(key)
        if value is not None and not is_number(value):
            raise ValueError(f"{where} has {key} {value!r:.40}: not a number")
    if row["experiment"] == "perplexity" and not min(row[key] for key in NUMBERS["perplexity"]) > 0:
        raise ValueError(f"{where}: {', '.join(NUMBERS['perplexity'])} must be positive")
    if (values := row.get("values")) is not None and not _columns(values):
        raise ValueError(f"{where} has 'values' that are no columns of one length")


def _columns(values: object) -> bool:
    """Whether values hold lists of numbers of one length, or nothing that pairing would read."""
    if not isinstance(values, dict) or "nats" not in values:
        return isinstance(values, dict)
    columns = [values.get(key) for key in ("nats", "tokens", "documents" if "documents" in values else "entropy")]
    lists = [column for column in columns if isinstance(column, list) and all(map(is_number, column))]
    return len(lists) == 3 and len(set(map(len, lists))) == 1 and sum(values["tokens"]) > 0


def without_values(row: Row) -> Row:
    """The values of single windows, texts and questions are for files."""
    return {key: value for key, value in row.items() if key != "values"}


def compare(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """One row for every pair of rows that measure the same thing: difference first - second, error, what it means.

    Raises ValueError, naming what differs, where no pair does.
    """
    pairs = [(a, b) for a in first for b in second if not _differs(a, b)]
    if not pairs:
        a, b = min(((a, b) for a in first for b in second), key=lambda pair: len(_differs(*pair)))
        what = "; ".join(f"{key} {a.get(key)!r} against {b.get(key)!r}" for key in _differs(a, b))
        raise ValueError(f"nothing to compare, these rows measure different things: {what}")
    return [row for a, b in pairs for row in (_likelihoods(a, b) if a["experiment"] == "perplexity" else _texts(a, b))]


def _differs(a: Row, b: Row) -> list[str]:
    """The keys in which two rows measure different things."""
    if a["experiment"] != b["experiment"]:
        return ["experiment", *KEYS[a["experiment"]]]
    return [key for key in KEYS[a["experiment"]] if a.get(key) != b.get(key)]


def _likelihoods(a: Row, b: Row) -> list[Row]:
    common = {"corpus": a["corpus"], "protocol": a["protocol"], "note": _bounds(a, b)}
    if a.get("tokenizer") == b.get("tokenizer") and _same_windows(a, b):
        return [_row(a, b, **_paired(a, b), **common)]
    if a.get("tokenizer") == b.get("tokenizer") and a["tokens"] == b["tokens"]:
        return [_row(a, b, **_unpaired(a, b, "nats per token", a["tokens"], b["tokens"]), **common)]
    scale = [row["nats"] / row["bits_per_byte"] for row in (a, b)]
    return [_row(a, b, **_unpaired(a, b, "bits per byte", *scale), **common)]


def _same_windows(a: Row, b: Row) -> bool:
    values = [row.get("values") or {} for row in (a, b)]
    return all("documents" in each for each in values) and all(
        values[0].get(key) == values[1].get(key) for key in ("tokens", "documents")
    )


def _paired(a: Row, b: Row) -> Row:
    """Nats a token, by windows; the error is that of a ratio over documents (`ratio_variance`).

    The spread from document to document holds the maskings' share as well. `stderr_mc` takes the maskings of the two
    rows for independent, which is too careful where they share a seed.
    """
    nats = np.subtract(a["values"]["nats"], b["values"]["nats"])
    document = np.unique(a["values"]["documents"], return_inverse=True)[1]
    difference, size = np.bincount(document, nats), np.bincount(document, a["values"]["tokens"])
    error = math.sqrt(ratio_variance(torch.from_numpy(difference), torch.from_numpy(size)))
    return {
        "unit": "nats per token",
        "difference": float(difference.sum() / size.sum()),
        "stderr": error / float(size.sum()),
        "stderr_mc": math.hypot(_error(a, "stderr_mc"), _error(b, "stderr_mc")) / float(size.sum()),
        "paired": f"{len(size)} documents, {len(nats)} windows",
    }


def _unpaired(a: Row, b: Row, unit: str, *scales: float) -> Row:
    found = list(zip((a, b), scales, strict=True))
    maskings = [_error(row, "stderr_mc") / scale for row, scale in found]
    texts = [_error(row, "stderr_data") / scale for row, scale in found]
    return {
        "unit": unit,
        "difference": a["nats"] / scales[0] - b["nats"] / scales[1],
        "stderr": math.hypot(*maskings, *texts),
        "stderr_mc": math.hypot(*maskings),
        "paired": "no",
    }


def _error(row: Row, key: str) -> float:
    """An error of a row's nats; nan where one document tells nothing."""
    return math.nan if row.get(key) is None else float(row[key])


def _texts(a: Row, b: Row) -> list[Row]:
    """Texts of two models are independent draws; perplexity is never shown without entropy."""
    note = "; ".join(f"{row['model']}: {row['caution']}" for row in (a, b) if row.get("caution", "none") != "none")
    common = {
        "corpus": f"texts of {a['length']} tokens",
        "protocol": f"judge {a['judge']}",
        "paired": "no",
        "note": note,
    }
    rows = []
    for unit, error in (("generative_perplexity", "stderr"), ("entropy", "entropy_stderr")):
        found = {"difference": a[unit] - b[unit], "stderr": math.hypot(a[error], b[error]), "stderr_mc": 0.0}
        rows.append(_row(a, b, unit=unit.replace("_", " "), **found, **common))
    return rows


def _bounds(a: Row, b: Row) -> str:
    kinds = [row.get("bound") for row in (a, b)]
    if kinds[0] == kinds[1]:
        return "" if kinds[0] == "exact" else f"a difference of {kinds[0]}s, not of the likelihoods"
    return "; ".join(f"{row['model']}: {row.get('bound')}" for row in (a, b))


def _row(a: Row, b: Row, **found) -> Row:
    names = {"experiment": "comparison", "first": a.get("model"), "second": b.get("model")}
    if a.get("model") == b.get("model") and "file" in a and "file" in b:
        names |= {"first": f"{a['model']} ({a['file']})", "second": f"{b['model']} ({b['file']})"}
    sigmas = abs(found["difference"]) / found["stderr"] if found["stderr"] else math.nan
    return {**names, **found, "sigmas": sigmas}
