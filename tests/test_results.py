"""Results of experiments: published small, told on one page, and every page a function of the files."""

import itertools
import json
from pathlib import Path

import pytest

from unmask.cli.report import Report
from unmask.experiments import Temporal
from unmask.experiments.page import publish, published, results_page, told
from unmask.files import read_json
from unmask.report import read as read_module
from unmask.report.page import report
from unmask.report.read import find


def temporal(gain: float, **changes) -> dict:
    """A result of two periods; from the one to the other the MDM's loss rises by `gain` nats a token less."""
    rows = []
    for model, period in itertools.product(("MDM", "ARM"), ("trained period", "1980–1989")):
        rise = (period != "trained period") * (1 - gain * (model == "MDM"))
        row = {"model": model, "seed": 0, "share": 1.0, "period": period, "tokens": [1000] * 4, "bound": "exact"}
        rows.append({**row, "stderr_mc": 1 / 3, "nats": [1000 * (3 + rise) + i * (1 + rise) for i in range(4)]})
    stated = {"experiment": "temporal", "scale": "laptop", "source": "builtin", "machine": "one thread", "unmask": "1"}
    return {**stated, "command": "unmask experiment temporal --scale laptop", "rows": rows, **changes}


def put(folder: Path, result: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two experiments that are done, the first with a cell of its own below it."""
    put(tmp_path / "runs" / "temporal-laptop", temporal(0.2))
    put(tmp_path / "runs" / "temporal-laptop" / "mdm-0", {"cell": "mdm-0", "rows": [{"model": "secret"}]})
    (tmp_path / "runs" / "temporal-laptop" / "mdm-0" / "config.json").write_text('{"name": "secret"}')
    command = "unmask experiment temporal --source '/home/me/the news' --out /home/me/out"
    put(tmp_path / "runs" / "temporal-news", temporal(-0.2, source="/home/me/the news", command=command))
    return tmp_path / "runs"


def test_the_page_is_that_of_the_files_and_publishing_twice_changes_nothing(runs: Path, tmp_path: Path):
    docs = tmp_path / "docs"
    page = publish(find([runs]).claims, docs)
    assert page.read_text() == results_page(published(docs / "results"))
    files = {file: file.read_bytes() for file in docs.rglob("*") if file.is_file()}
    assert {file.name for file in files} == {
        "results.md", "temporal-laptop.json", "temporal-laptop.svg", "temporal-news.json", "temporal-news.svg",
    }  # fmt: skip
    publish(find([docs / "results"]).claims, docs)
    assert files == {file: file.read_bytes() for file in docs.rglob("*") if file.is_file()}
    text = page.read_text()
    assert Temporal().find(temporal(0.2)["rows"]).measured in text
    assert "**Held:** yes." in text
    assert "**Held:** no." in text
    assert text.index("## Temporal, laptop") < text.index("## Temporal, news")


def test_a_published_result_is_small_and_names_no_folder_of_the_machine(runs: Path, tmp_path: Path):
    publish(find([runs]).claims, tmp_path / "docs")
    for file in (tmp_path / "docs").rglob("*.*"):
        assert "/home/me" not in file.read_text()
    news = json.loads((tmp_path / "docs" / "results" / "temporal-news.json").read_text())
    assert news["command"] == "unmask experiment temporal --source 'the news' --out out"
    assert news["rows"][0]["stderr_mc"] == 0.333333
    assert news["rows"][0]["nats"] == temporal(-0.2)["rows"][0]["nats"]


def test_a_report_tells_claims_and_not_the_cells_they_are_made_of(runs: Path, tmp_path: Path):
    page = report([runs], tmp_path / "page.html", told=told).read_text()
    assert "secret" not in page
    assert page.count("<article>") == 2
    assert "by −0.20" in page
    publish(find([runs]).claims, runs / "docs")
    again = report([runs], tmp_path / "again.html", told=told).read_text()
    assert again == page, "a published copy is not told twice"


def test_without_a_teller_the_rows_are_shown(runs: Path, tmp_path: Path):
    page = report([runs], tmp_path / "page.html").read_text()
    assert "<article>" not in page
    assert "temporal-news" in page


def test_the_command_writes_both(runs: Path, tmp_path: Path):
    Report((runs,), tmp_path / "page.html", tmp_path / "docs").run()
    assert "Temporal, news" in (tmp_path / "page.html").read_text()
    assert "Temporal, news" in (tmp_path / "docs" / "results.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": "nothing"}, "odd: no experiment 'nothing' here; there are losses"),
        ({"rows": [{"model": "MDM"}]}, "odd: rows that are not those of temporal"),
        ({"rows": []}, "odd: rows that are not those of temporal"),
    ],
)
def test_a_result_that_cannot_be_told(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        told("odd", temporal(0.1, **changes))


def test_a_folders_name_may_have_a_blank(tmp_path: Path):
    put(tmp_path / "runs" / "my news", temporal(0.1))
    page = publish(find([tmp_path / "runs"]).claims, tmp_path / "docs").read_text(encoding="utf-8")
    assert "](#my-news)" in page
    assert '<a id="my-news"></a>' in page
    assert "](results/my%20news.svg)" in page
    assert (tmp_path / "docs" / "results" / "my news.svg").is_file()


def test_two_results_of_one_name(runs: Path, tmp_path: Path):
    put(tmp_path / "more" / "temporal-news", temporal(0.1, rows=temporal(0.1)["rows"] * 2))
    with pytest.raises(ValueError, match="temporal-news: the name of more than one result"):
        publish(find([runs, tmp_path / "more"]).claims, tmp_path / "docs")


def test_what_is_not_ours_is_neither_written_over_nor_read(runs: Path, tmp_path: Path):
    """And where the results cannot be published nothing is written, the page neither."""
    docs, page = tmp_path / "docs", tmp_path / "page.html"
    (docs / "results").mkdir(parents=True)
    (docs / "results" / "foreign.json").write_text('{"rows": [], "experiment": 3}')
    mine = docs / "results.md"
    mine.write_text("# Results\n\nof my own\n")
    with pytest.raises(ValueError, match=r"docs/results.md: is there, and no page of results"):
        Report((runs,), page, docs).run()
    assert mine.read_text() == "# Results\n\nof my own\n"
    with pytest.raises(ValueError, match=r"results.md.* \(Not a directory\): choose another place"):
        Report((runs,), page, mine).run()
    put(tmp_path / "more", {"rows": [{"experiment": "mine", "x": 1}]})
    with pytest.raises(ValueError, match=r"results.md: no result of an experiment that is done"):
        Report((tmp_path / "more",), page, docs).run()
    assert {file.name for file in docs.rglob("*")} == {"results", "foreign.json", "results.md"}
    assert not page.exists()
    mine.unlink()
    Report((runs,), page, docs).run()
    assert "foreign" not in mine.read_text()
    (docs / "results" / "foreign.json").write_text("[]")
    with pytest.raises(ValueError, match=r"foreign.json: expected a JSON object"):
        Report((runs,), page, docs).run()


@pytest.mark.parametrize("changes", [{"machine": "another"}, {"source": "another"}, {"rows": temporal(0.3)["rows"]}])
def test_what_differs_is_another_result(tmp_path: Path, changes: dict):
    put(tmp_path / "one" / "temporal-laptop", temporal(0.2))
    put(tmp_path / "two" / "temporal-laptop", temporal(0.2, **changes))
    put(tmp_path / "three" / "temporal-laptop", temporal(0.2))
    assert len(find([tmp_path]).claims) == 2


def test_a_file_is_read_once(runs: Path, monkeypatch: pytest.MonkeyPatch):
    read, before = [], read_module._peek
    monkeypatch.setattr(read_module, "_peek", lambda file: (read.append(file), before(file))[1])
    monkeypatch.setattr(read_module, "read_json", lambda file: (read.append(file), read_json(file))[1])
    find([runs])
    assert len(read) == len(set(read))
