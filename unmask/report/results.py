"""What was measured of texts, tasks and pairs of models: rows of results as tables and figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unmask.report.drawing import COLOURS, style
from unmask.report.figures import Dot, Series, cost_figure, dots_figure
from unmask.report.tables import Table, labels_of, notes, say
from unmask.units import drawable, duration, plain, with_error

Row = Mapping[str, Any]


def by(rows: Iterable[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows in groups of equal values of `keys`, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(say(row.get(key)) for key in keys), []).append(row)
    return groups


def _judged_by(judge: str, length: str) -> str:
    return f"judge {judge}, {length} tokens a text"


JUDGED = ("model", "judge", "length", "generative_perplexity", "stderr", "entropy", "entropy_stderr")
JUDGED += ("distinct_2", "repetition_4", "bits_per_byte", "nfe", "seconds_per_text", "caution", "nats", "sweep")
JUDGED += ("draw", "law")


def generation_table(rows: Sequence[Row]) -> Table:
    """What a judge says of texts, never without their entropy, and what a sceptic says of the row."""
    columns = [("texts of", False), ("generative perplexity", True), ("± texts", True), ("entropy, nats", True)]
    columns += [("± texts", True), ("distinct 2-grams", True), ("repeated 4-grams", True), ("bits per byte", True)]
    columns += [("NFE", True), ("time a text", True), ("caution", False)]
    groups = by(rows, "judge", "length")
    cells = [(_judged_by(*key), [_judged(row) for row in group]) for key, group in groups.items()]
    return Table(columns, cells, notes([(_writer(row), row) for row in rows], JUDGED))


def _judged(row: Row) -> list[str]:
    return [
        _writer(row),
        *with_error(row.get("generative_perplexity"), row.get("stderr")),
        *with_error(row.get("entropy"), row.get("entropy_stderr")),
        *(plain(row.get(key), 3) for key in ("distinct_2", "repetition_4")),
        plain(row.get("bits_per_byte")),
        plain(row.get("nfe")),
        duration(row.get("seconds_per_text")),
        say(row.get("caution")),
    ]


def _writer(row: Row) -> str:
    """Whose texts, and in which way they were written."""
    way = row.get("sweep") or str(row.get("policy") or "").partition("(")[0]
    return ", ".join(map(str, filter(None, (say(row.get("model")), way, row.get("draw")))))


def generation_figures(rows: Sequence[Row]) -> list[tuple[str, list[str], list[tuple[str, str, str]]]]:
    """(what they share, figures of perplexity and of entropy against cost, legend) of texts by one judge."""
    found = []
    for key, group in by(rows, "judge", "length").items():
        ways: dict[str, list[Row]] = {}
        for row in (row for row in group if (drawable(row.get("nfe")) or 0) > 0):
            ways.setdefault(_writer(row), []).append(row)
        people = [row for row in group if row.get("yardstick") or row.get("nfe") is None]
        costs = {drawable(row["nfe"]) for rows in ways.values() for row in rows}
        if len(costs) > 1:
            drawn = [
                cost_figure(series, _lines(people, *measure), unit, log=unit is MEASURES[0][2])
                for *measure, unit in MEASURES
                if (series := _series(ways, *measure))
            ]
            legend = [(style(i)[0], style(i)[2], way) for i, way in enumerate(ways)]
            legend += [("currentColor", "- -", say(row.get("model"))) for row in people]
        else:
            drawn, legend = [_apart(group, *measure) for measure in MEASURES], []
        found.append((_judged_by(*key), [figure for figure in drawn if figure], legend))
    return found


MEASURES = (
    ("generative_perplexity", "stderr", "generative perplexity"),
    ("entropy", "entropy_stderr", "entropy of a text (nats)"),
)


def _apart(rows: Sequence[Row], value: str, error: str, unit: str) -> str | None:
    """A dot a row, where cost tells nothing."""
    dots = []
    for row in rows:
        x, e = drawable(row.get(value)), drawable(row.get(error))
        if x is not None:
            colour = COLOURS[1] if row.get("yardstick") else COLOURS[0]
            dots.append(Dot(_writer(row), with_error(x, e)[0], x, e, colour=colour, marker="o", filled=True))
    return dots_figure(dots, unit, f"{unit}: {'; '.join(f'{dot.label} {dot.text}' for dot in dots)}") if dots else None


def _series(ways: Mapping[str, Sequence[Row]], value: str, error: str) -> list[Series]:
    every = []
    for i, (way, rows) in enumerate(ways.items()):
        points = [
            (drawable(row["nfe"]), drawable(row.get(value)), abs(drawable(row.get(error)) or 0.0)) for row in rows
        ]
        if kept := [(x, y, e) for x, y, e in points if x and y is not None and y > 0]:
            every.append(Series(way, i, kept))
    return every


def _lines(rows: Sequence[Row], value: str, error: str) -> list[tuple[str, float, float]]:
    found = [(say(row.get("model")), drawable(row.get(value)), abs(drawable(row.get(error)) or 0.0)) for row in rows]
    return [(name, y, e) for name, y, e in found if y is not None and y > 0]


ASKED = ("model", "task", "metric", "value", "stderr", "documents")


def tasks_table(rows: Sequence[Row]) -> Table:
    """Accuracies in per cent, with the error of the questions."""
    columns = [("task", False), ("model", False), ("metric", False), ("value", True), ("± questions", True)]
    columns += [("questions", True), ("kind", False)]
    cells, names = [], _asked_by(rows)
    for row, name in zip(rows, names, strict=True):
        scale = _scale(row)
        value, error = (drawable(row.get(key)) for key in ("value", "stderr"))
        shown = with_error(None if value is None else scale * value, None if error is None else scale * error)
        unit = " %" if scale == 100 else ""
        words = [say(row.get("task")), name, say(row.get("metric"))]
        cells.append([*words, shown[0] + unit, shown[1], plain(row.get("documents")), say(row.get("bound"))])
    named = [(f"{name}, {say(row.get('task'))}", row) for row, name in zip(rows, names, strict=True)]
    return Table(columns, [("", cells)], notes(named, (*ASKED, "bound")))


def _asked_by(rows: Sequence[Row]) -> list[str]:
    """Each row's model, and what tells its ways of answering one task apart."""
    found: dict[int, str] = {}
    for same in by(rows, "task", "metric").values():
        found |= zip(map(id, same), labels_of(same), strict=True)
    return [found[id(row)] for row in rows]


def _scale(row: Row) -> int:
    return 100 if str(row.get("metric")).startswith(("acc", "exact_match")) else 1


def tasks_figures(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """((metric, figure of all tasks and models), legend)."""
    named = [{**row, "asked": name} for row, name in zip(rows, _asked_by(rows), strict=True)]
    models = list(dict.fromkeys(row["asked"] for row in named))
    figures = []
    for (metric,), group in by(named, "metric").items():
        dots = []
        for _, same in by(group, "task").items():
            for row in same:
                scale, value, error = _scale(row), drawable(row.get("value")), drawable(row.get("stderr"))
                if value is not None:
                    colour, marker, _ = style(models.index(row["asked"]))
                    text = with_error(scale * value, error and scale * error)[0]
                    look = {"colour": colour, "marker": marker, "filled": True}
                    dots.append(Dot(say(row.get("task")), text, scale * value, error and scale * error, **look))
        if dots:
            unit = f"{metric} (per cent)" if _scale(group[0]) == 100 else metric
            spoken = "; ".join(f"{dot.label} {dot.text}" for dot in dots)
            figures.append((metric, dots_figure(dots, unit, f"{unit} by task: {spoken}")))
    return figures, [(style(i)[0], style(i)[2], model) for i, model in enumerate(models)]


def comparison_table(rows: Sequence[Row]) -> Table:
    """Differences with their errors; like is compared with like."""
    columns = [("first − second", False), ("difference", True), ("± all", True), ("± maskings", True), ("sigmas", True)]
    columns += [("paired by", False), ("note", False)]
    cells = [
        (
            f"{corpus}, {protocol}, {unit}",
            [
                [
                    _pair(row),
                    *with_error(row.get("difference"), row.get("stderr"), row.get("stderr_mc")),
                    plain(row.get("sigmas"), 3),
                    say(row.get("paired")),
                    say(row.get("note")),
                ]
                for row in group
            ],
        )
        for (corpus, protocol, unit), group in by(rows, "corpus", "protocol", "unit").items()
    ]
    return Table(columns, cells)


def _pair(row: Row) -> str:
    return f"{say(row.get('first'))} − {say(row.get('second'))}"


def comparison_figures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(unit, figure): every difference of that unit, zero marked."""
    figures = []
    for (unit,), group in by(rows, "unit").items():
        dots = []
        for row in group:
            value = drawable(row.get("difference"))
            if value is not None:
                text = with_error(value, row.get("stderr"))[0]
                text = text if value < 0 else f"+{text}"
                errors = (drawable(row.get(key)) for key in ("stderr", "stderr_mc"))
                dots.append(Dot(_pair(row), text, value, *errors, colour=COLOURS[0], marker="o", filled=True))
        if dots:
            spoken = "; ".join(f"{dot.label} {dot.text}" for dot in dots)
            said = f"Difference in {unit}: {spoken}"
            figures.append((unit, dots_figure(dots, f"difference ({unit})", said, zero=True)))
    return figures
