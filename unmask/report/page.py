"""One page of all that was found: its content, and its template filled in.

Numbers are data, pages are views: the page is a function of config.json, metrics.jsonl, result.json and samples.json
alone, so equal files give an equal page. It asks the network for nothing and its policy forbids it to.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

import unmask.report
from unmask.files import Row, atomic, flat, writable
from unmask.report import figures, results, tables
from unmask.report.claims import Claim, overview
from unmask.report.read import Findings, clean, find
from unmask.report.replay import prepare
from unmask.units import drawable


def report(
    paths: Sequence[Path],
    out: Path,
    title: str = "unmask report",
    *,
    told: Callable[[str, Row], Claim] | None = None,
) -> Path:
    """Write one page about everything found under `paths` (run folders, folders of them, result files) to `out`.

    `told(name, result)` says what the result of an experiment means (`experiments.page.told`); without it its rows are
    shown as they are. Raises: ValueError where nothing to report is found or a file is malformed (its name, and the
    line in a .jsonl).
    """
    return page_of(find(paths), out, title, told=told)


def page_of(
    found: Findings, out: Path, title: str = "unmask report", *, told: Callable[[str, Row], Claim] | None = None
) -> Path:
    """As `report`, of what is found already."""
    if told is None:
        rows = [{**row, "experiment": name} for name, result in found.claims for row in result["rows"]]
        found = replace(found, rows=[*found.rows, *rows])
    claims = [] if told is None else [told(*each) for each in found.claims]
    page = _render("page.html", title=clean(title), **_content(found, claims))
    return _write(Path(out), page)


def replay_html(sample: Mapping[str, Any]) -> str:
    """One sample's replay as a fragment with its own style and script, to be placed in any page.

    `sample` is an entry of samples.json. Without a script the final text shows, coloured by when each token came.

    Raises: ValueError where the sample's lists do not fit each other.
    """
    return _render("fragment.html", replay=prepare(sample))


def replay_page(sample: Mapping[str, Any]) -> str:
    """One sample's replay as a complete page. Raises as `replay_html`."""
    ready = prepare(sample)
    return _render("page.html", title=ready.title, **_content(Findings([], [], [])) | {"replays": [ready]})


def _content(found: Findings, claims: Sequence[Claim] = ()) -> dict[str, Any]:
    """What page.html shows, section by section; an empty one is left out there."""
    kinds = {kind: [row for row in found.rows if row["experiment"] == kind] for kind in KNOWN}
    perplexity = tables.perplexities(kinds["perplexity"])
    others: dict[str, list] = {}
    for row in found.rows:
        if row["experiment"] not in KNOWN:
            others.setdefault(str(row["experiment"]), []).append(row)
    curves = [run for run in found.runs if run.train or run.validation]
    losses = [figures.loss_figure(curves, against) for against in ("flops", "tokens")]
    asked, askers = results.tasks_figures(kinds["tasks"])
    return {
        "claims": claims,
        "overview": overview(claims) if len(claims) > 1 else None,
        "replays": [prepare(sample) for sample in found.samples],
        "dots": [(*tables.heading(*key), _dots(key, group)) for key, group in perplexity.items()],
        "perplexity": tables.perplexity_table(perplexity) if perplexity else None,
        "generation": results.generation_table(kinds["generation"]) if kinds["generation"] else None,
        "written": [
            (what, list(map(Markup, drawn)), legend)
            for what, drawn, legend in results.generation_figures(kinds["generation"])
        ],
        "tasks": results.tasks_table(kinds["tasks"]) if kinds["tasks"] else None,
        "asked": [(metric, Markup(figure)) for metric, figure in asked],
        "askers": askers,
        "comparisons": results.comparison_table(kinds["comparison"]) if kinds["comparison"] else None,
        "differences": [(unit, Markup(figure)) for unit, figure in results.comparison_figures(kinds["comparison"])],
        "losses": [Markup(loss) for loss in losses if loss],
        "legend": figures.keys(curves),
        "bins": figures.BINS,
        "others": [(name, tables.generic(rows)) for name, rows in others.items()],
        "runs": tables.runs_table(found.runs) if found.runs else None,
        "settings": [(run.name, list(flat(run.config))) for run in found.runs if run.config],
    }


KNOWN = ("perplexity", "generation", "tasks", "comparison")


def _dots(key: tuple[str, ...], group: Sequence[Mapping[str, Any]]) -> Markup | None:
    shown = [entry for entry in group if drawable(entry["perplexity"]) is not None]
    return Markup(figures.perplexity_figure(shown, tables.title(*key))) if shown else None


def _part(name: str) -> str:
    return files(unmask.report).joinpath(name).read_text(encoding="utf-8")


def _render(template: str, **values: Any) -> str:
    """A template of this folder, everything escaped but what is ours."""
    environment = Environment(
        loader=FunctionLoader(_part),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = Markup(_part("replay.css")), Markup(_part("replay.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    own = {"page_style": Markup(_part("page.css")), "style": style, "script": script, "script_hash": digest}
    return environment.get_template(template).render(**own, **values)


def _write(out: Path, page: str) -> Path:
    """`page` at `out`, whole or not at all; bytes, so that line ends stay as the script's digest has them."""
    writable(out)
    with atomic(out, "wb") as file:
        file.write(page.encode("utf-8"))
    return out
