"""The results of experiments as a page: docs/results.md, a pure function of result files, and what a report tells."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from unmask.experiments import Experiment
from unmask.experiments.running import Finding, trained
from unmask.files import Row, atomic, finite, read_json, writable
from unmask.report.claims import LONG, Claim
from unmask.report.drawing import svg_file
from unmask.report.read import is_claim, rounded, shown

BEGINS = "# Results\n\nThe papers' claims, rerun."
HEAD = f"""{BEGINS} Each section is computed from the result file beside it in [results/](results); its command
reruns it, at the scale and on the kind of machine stated. ± is a standard error, of what the table says.
"""


def publish(results: Sequence[tuple[str, Row]], folder: Path) -> Path:
    """Write what `pages` makes; returns the page of results."""
    return put(pages(results, folder))


def put(made: Mapping[Path, bytes]) -> Path:
    """Write files; returns the last one."""
    for path, content in made.items():
        with atomic(path, "wb") as file:
            file.write(content)
    return [*made][-1]


def pages(results: Sequence[tuple[str, Row]], folder: Path) -> dict[Path, bytes]:
    """folder/results/NAME.json and .svg of each (name, result), and folder/results.md of all that are there.

    Raises ValueError, before anything is written, where there is no result, two have one name, one cannot be told, or
    a results.md is there that is not such a page.
    """
    page = folder / "results.md"
    if not results:
        raise ValueError(f"{page}: no result of an experiment that is done to write it of: give its folder")
    names = [name for name, _ in results]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))}: the name of more than one result: rename a folder")
    if page.is_file() and not page.read_text(encoding="utf-8", errors="replace").startswith(BEGINS):
        raise ValueError(f"{page}: is there, and no page of results: move it away or choose another folder")
    small = {name: brief(result) for name, result in results}
    made = {}
    for name, text in small.items():
        made[folder / "results" / f"{name}.json"] = text.encode()
        made[folder / "results" / f"{name}.svg"] = svg_file(told(name, json.loads(text)).figure)
    found = published(folder / "results") | {name: json.loads(text) for name, text in small.items()}
    made[page] = results_page(found).encode()
    for path in made:
        writable(path)
    return made


def published(folder: Path) -> dict[str, Row]:
    """Each NAME.json of `folder` that is the result of an experiment."""
    found = {file.stem: read_json(file) for file in folder.glob("*.json")}
    return {name: each for name, each in found.items() if is_claim(each)}


def results_page(found: Mapping[str, Row]) -> str:
    """The page of results: by experiment, then by name."""
    order = [kind.__name__.lower() for kind in get_args(Experiment)]
    claims = [told(name, found[name]) for name in sorted(found)]
    claims.sort(key=lambda claim: order.index(found[claim.name]["experiment"]))
    lines = [f"| [{each.title}](#{_anchor(each.name)}) | {each.says} | {each.held} |" for each in claims]
    table = "\n".join(["| experiment | the paper | held |", "| --- | --- | --- |", *lines])
    return "\n".join([HEAD, f"{table}\n", *map(_section, claims)])


def told(name: str, result: Row) -> Claim:
    """What an experiment's result means.

    Raises ValueError, naming it, for an experiment that is not known here or rows that are not its own.
    """
    kinds = {kind.__name__.lower(): kind for kind in get_args(Experiment)}
    kind = kinds.get(result["experiment"])
    if kind is None:
        raise ValueError(f"{name}: no experiment {result['experiment']!r} here; there are {', '.join(kinds)}")
    try:
        finding: Finding = kind().find(result["rows"])
        figure = kind().figure(result["rows"])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{name}: rows that are not those of {result['experiment']} ({error!r}): rerun it") from None
    how = (f"text {shown(result['source'])}", trained(result), result["machine"], f"unmask {result['unmask']}")
    return Claim(
        name=name,
        title=name.replace("-", ", ").capitalize(),
        says=finding.claim,
        measured=finding.measured,
        held=finding.held,
        scale=result["scale"],
        how="; ".join(filter(None, how)),
        command=_command(result["command"]),
        tables=[(table.title, table.header, table.rows) for table in finding.tables],
        figure=figure,
    )


def brief(result: Row) -> str:
    """A result as a small file: a line a row, numbers to as many digits as mean something."""
    told = {**result, "source": shown(result["source"]), "command": _command(result["command"])}
    rows = ",\n".join(f"  {_dumped(row)}" for row in told.pop("rows"))
    head = [f' "{key}": {_dumped(value)},' for key, value in told.items()]
    return "\n".join(["{", *head, ' "rows": [', rows, " ]", "}", ""])


def _dumped(value: object) -> str:
    return json.dumps(rounded(finite(value)), ensure_ascii=False, separators=(",", ":"))


def _command(words: str) -> str:
    return shlex.join(map(shown, shlex.split(words)))


def _section(each: Claim) -> str:
    """One claim: the paper's words, ours, and the numbers."""
    lines = [
        f'<a id="{_anchor(each.name)}"></a>',
        "",
        f"## {each.title}",
        "",
        f"**The paper:** {each.says}",
        "",
        f"**Measured:** {each.measured}",
        "",
        f"**Held:** {each.held}.",
        "",
        f"Scale {each.scale}; `{each.command}`; {each.how}.",
        "",
        f"![{each.title}: the figure](results/{quote(each.name)}.svg)",
        "",
    ]
    return "\n".join([*lines, *(markdown(*table) for table in each.tables)])


def _anchor(name: str) -> str:
    """A name as what a link within a page can hold."""
    return re.sub(r"[^\w.-]+", "-", name)


def markdown(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its title above; folded where it is long."""
    cells = [header, ["---"] * len(header), *rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
    if len(rows) > LONG:
        return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>\n"
    return f"{title}\n\n{body}\n"
