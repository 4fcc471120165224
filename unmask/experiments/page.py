"""docs/results.md: a pure function of result files, so that a page that disagrees with them can be told."""

from collections.abc import Sequence
from pathlib import Path

from unmask.experiments.running import Experiment, Finding, Table, name_of
from unmask.files import Row, read_json

HEAD = """# Results

The papers' claims, rerun. Each section is computed from the result file beside it in [results/](results); its command
reruns it, at the scale and on the kind of machine stated. ± is a standard error, of what the table says.
"""


def results_page(experiments: Sequence[Experiment], folder: Path) -> str:
    """The page of all results in `folder`, NAME.json each, in the order of `experiments`."""
    known = [(each, folder / f"{name_of(each)}.json") for each in experiments]
    return "\n".join([HEAD, *(section(each, read_json(path)) for each, path in known if path.exists())])


def section(experiment: Experiment, result: Row) -> str:
    """One claim: the paper's words, ours, and the numbers."""
    finding: Finding = experiment.find(result["rows"])
    name = name_of(experiment)
    lines = [
        f"## {name.capitalize()}",
        "",
        f"**The paper:** {finding.claim}",
        "",
        f"**Measured:** {finding.measured}",
        "",
        f"**Held:** {finding.held}.",
        "",
        f"Scale {result['scale']}, text: {result['source']}; `{result['command']}`; {result['machine']}; "
        f"unmask {result['unmask']}.",
        "",
        f"![{name}](results/{name}.svg)",
        "",
    ]
    return "\n".join([*lines, *(markdown(table) for table in finding.tables)])


def markdown(table: Table) -> str:
    """A table in Markdown, its title above."""
    rows = [table.header, ("---",) * len(table.header), *table.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"{table.title}\n\n{body}\n"
