"""The report: what it shows is what the files say, safe whatever they say, and asks the network for nothing."""

import base64
import hashlib
import json
import math
import re
import warnings
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from unmask.report.drawing import shorten, style, svg
from unmask.report.figures import Dot, dots_figure, loss_figure, smooth
from unmask.report.page import replay_html, replay_page, report
from unmask.report.read import Run, find
from unmask.report.tables import runs_table
from unmask.units import count, duration, plain, power, with_error

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\">]]>-->"
    " ${x} {{ 7*7 }} $\\frac$ &amp; \x00\x1b\u2028"
)
VOID = {"meta", "input", "br", "img", "link", "hr"}


def write_run(folder: Path, name: str, *, steps: int = 4000, floor: float = 3.2, objective: str = "AnyOrder") -> Path:
    """A run folder as the trainer leaves it: a power law of loss in step, with noise."""
    rng = np.random.default_rng(len(name))
    folder.mkdir(parents=True)
    tokens, flops = 65_536, 65_536 * 6 * 31e6
    exact = objective == "NextToken"
    config = {
        "name": name,
        "unmask": "0.1.0",
        "machine": "x86_64 cpu, 2 threads",
        "network": {"layers": 8, "heads": 6, "width": 384, "vocab": 32000, "extra": {"rotary": [1e4, None]}},
        "training": {"objective": objective, "steps": steps},
        "parameters": {"total": 43_500_000, "non_embedding": 18_900_000},
        "budget": {"flops_6nd": 6 * 18.9e6 * tokens * steps, "flops_true": flops * steps, "tokens": tokens * steps},
        "odd": ["a key nobody knows", 1.5],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = []
    for step in range(1, steps + 1, max(1, steps // 400)):
        at = {"step": step, "tokens": tokens * step, "flops": flops * step, "seconds": 0.41 * step}
        loss = floor + 7 * step**-0.42 + rng.normal() * 0.06
        rows.append({"kind": "train", **at, "loss": loss, "lr": 3e-4, "grad_norm": abs(rng.normal())})
    for step in range(steps // 8, steps + 1, steps // 8):
        at = {"step": step, "tokens": tokens * step, "flops": flops * step}
        loss = floor + 0.05 + 7 * step**-0.42 + rng.normal() * 0.02
        bound = "exact" if exact else "upper bound"
        rows.append({"kind": "validation", **at, "nats_per_token": loss, "stderr": 0.03, "bound": bound})
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def result_row(model: str, corpus: str, perplexity: float, **other: object) -> dict:
    tokens = 245_569
    return {
        "experiment": "perplexity",
        "model": model,
        "corpus": corpus,
        "protocol": "packed blocks of 1024",
        "perplexity": perplexity,
        "nats": math.log(perplexity) * tokens,
        "tokens": tokens,
        "bits_per_byte": math.log2(perplexity) / 4.4,
        "stderr_mc": 310.0,
        "stderr_data": 2900.0,
        "bound": "upper bound",
        "estimator": "any order, stratified",
        "draws": 16,
        "evaluations": 4096,
        "sequences": 256,
        "seed": 0,
        "precision": "float32",
        "seconds": 93.2,
    } | other


def results() -> list[dict]:
    exact = {"bound": "exact", "stderr_mc": 0.0, "estimator": "chain rule", "draws": 1}
    return [
        *(result_row("radd small", corpus, value) for corpus, value in (("WikiText-2", 38.26), ("PTB", 110.38))),
        *(
            result_row("gpt2 small", corpus, value, **exact)
            for corpus, value in (("WikiText-2", 42.43), ("PTB", 138.43))
        ),
        *(result_row("radd small", "WikiText-2", 38.31, seed=seed) for seed in (1, 2)),
        {"experiment": "caching", "steps": 1024, "calls": 61.2, "stderr": 0.4, "seed": 12345, "policy": "tweedie"},
        {"experiment": "caching", "steps": 4096, "calls": 64.0, "ratio": 3.27, "of": ["a", "b"]},
    ]


def sample(title: str = "Once upon a time", n: int = 90, calls: int | None = None) -> dict:
    """A sample as `unmask sample` records it: a given prompt, then words in a random order."""
    rng = np.random.default_rng(5)
    words = (" the", " sea", " and", " a", " man", ",", " with", "out", " light", ".", "\n", " unspeak", "ably", " old")
    pieces = ["Once", " upon", " a", " time", *(words[i] for i in rng.integers(0, len(words), n))]
    given = [True] * 4 + [False] * n
    when = rng.permutation(n) if calls is None else rng.integers(0, calls, n)
    return {
        "title": title,
        "text": "".join(pieces),
        "policy": "RandomOrder(tokens=1)",
        "exact_for": "the random-order law",
        "nfe": len(set(when.tolist())),
        "seconds": 1.93,
        "seed": 0,
        "pieces": pieces,
        "given": given,
        "step": [-1] * 4 + when.tolist(),
        "confidence": [1.0] * 4 + rng.beta(1.2, 0.9, n).tolist(),
    }


def write_all(folder: Path) -> Path:
    """A folder of runs with everything in it."""
    write_run(folder / "mdm", "mdm 19M")
    write_run(folder / "arm", "arm 19M", floor=3.0, objective="NextToken")
    (folder / "result.json").write_text(json.dumps({"rows": results()}), encoding="utf-8")
    samples = [sample(), sample("in 16 calls of tau-leaping", calls=16)]
    (folder / "mdm" / "samples.json").write_text(json.dumps({"samples": samples}), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """A strict reading of a page: every tag closed in order, attributes unique; the text and scripts kept."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.cells: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data
            if "td" in self.open:
                self.cells[-1] += data


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_all(tmp_path_factory.mktemp("runs"))
    return report([folder], folder / "report.html", title="Masked against causal").read_text(encoding="utf-8")


def safe(html: str) -> Page:
    """The page, found well-formed, with our one script, no event handlers and nothing fetched from anywhere."""
    page = Page(html)
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "srcset", "action", "formaction", "data", "poster", "background"}
    links = [value or "" for _, attributes in page.tags for name, value in attributes.items() if name.endswith("href")]
    assert all(re.fullmatch(r"#[\w-]+", link) for link in links)
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "embed", "link", "base", "form", "img", "style"} - {
        "style"
    }
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert len(page.scripts) <= 1
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    pointed = {link[1:] for link in links} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert pointed <= set(identities)
    return page


def test_page_is_well_formed_and_self_contained(html: str) -> None:
    page = safe(html)
    assert html.startswith("<!doctype html>")
    assert "\ufffd" not in html
    for word in ("Masked against causal", "mdm 19M", "arm 19M", "radd small", "caching", "Once upon a time", "3.27"):
        assert word in page.text


def test_policy_forbids_all_but_the_pages_own_script(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    digest = base64.b64encode(hashlib.sha256(Page(html).scripts[0].encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_figures_are_xml_in_the_pages_colours(html: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(figures) == 4  # loss against FLOPs and tokens, perplexity of two corpora
    text = ""
    for figure in figures:
        root = ET.fromstring(figure)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "width" not in root.attrib
        assert "#010203" not in figure
        assert "currentColor" in figure
        assert not root.findall(".//{*}style") + root.findall(".//{*}metadata")
        text += " ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    for label in ("loss (nats per token)", "training compute (FLOPs)", "training tokens", "perplexity (per token)"):
        assert label in text


def test_numbers_are_those_of_the_files(html: str) -> None:
    """Delta method: 38.26 * 310 / 245569 = 0.0483 of the maskings, 38.26 * 2900 / 245569 = 0.4518 of the texts."""
    cells = Page(html).cells
    first = cells.index("≤ 38.260")
    assert cells[first - 1 : first + 6] == [
        "radd small",
        "≤ 38.260",
        "0.048",
        "0.452",
        plain(math.log2(38.26) / 4.4),
        "245,569",
        "upper bound",
    ]
    assert "evaluations 4,096, sequences 256, precision float32, seconds 1 min 33 s" in Page(html).text
    assert "any order, stratified, draws 16, seed 0" in Page(html).text
    assert cells[cells.index("42.43") + 1] == "0"  # exact: no sign of a bound
    assert "12345" in cells  # a seed is a name, not an amount
    for cell in ("43.5 M", "18.9 M", "3,991 of 4,000", "2.97 × 10¹⁶", "4.86 × 10¹⁶", "27 min 16 s"):
        assert cell in cells
    assert sum(cell.startswith("≤ 3.") and "± 0.030" in cell for cell in cells) == 1


def generation_row(model: str, **other: object) -> dict:
    row = {"experiment": "generation", "judge": "gpt2-large", "model": model, "length": 64, "texts": 32, "seed": 0}
    row |= {"generative_perplexity": 22.04, "stderr": 0.61, "entropy": 3.912, "entropy_stderr": 0.031, "nfe": 61.5}
    row |= {"distinct_2": 0.71, "repetition_4": 0.25, "bits_per_byte": 1.02, "seconds_per_text": 0.5, "nats": 9.0}
    return row | {"caution": "less varied than the reference", "values": {"nats": [987654.0]}} | other


def test_generated_texts_stand_beside_their_entropy(tmp_path: Path) -> None:
    rows = [generation_row("mdm"), generation_row("reference: books", caution=None, nfe=None)]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    page = safe(report([path], tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "judge gpt2-large, 64 tokens a text" in page.text
    cells = page.cells[page.cells.index("mdm") :][:11]
    assert cells == [
        *("mdm", "22.04", "0.61", "3.912", "0.031", "0.710", "0.250", "1.020", "61.50", "0.5 s"),
        "less varied than the reference",
    ]
    assert "987654" not in page.text
    del rows[0]["entropy"]
    path.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    with pytest.raises(ValueError, match="row 1: 'entropy' must be a number, and is missing"):
        report([path], tmp_path / "b.html")


def test_only_like_perplexities_share_a_figure(tmp_path: Path) -> None:
    """Another split, protocol, tokenizer or text is another group, and values of single windows are not shown."""
    first = {"split": "test", "tokenizer": "50,257 tokens, 1a", "values": {"nats": [987654.0]}, "bytes": 876543}
    rows = [result_row("a", "PTB", 30.0, **first), result_row("b", "PTB", 31.0, **first)]
    for change in ({"split": "validation"}, {"tokenizer": "258 tokens, 2b"}, {"protocol": "mdlm"}, {"data": "d2"}):
        rows.append(result_row("c", "PTB", 32.0, **first | change))
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    html = report([path], tmp_path / "a.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 5
    assert "PTB, test split, protocol packed blocks of 1024, tokenizer of 50,257 tokens, 1a" in html
    assert "987654" not in html
    assert "876,543" not in html


def test_page_is_a_function_of_the_files(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "runs")
    once = report([folder], tmp_path / "a.html").read_bytes()
    assert report([folder], tmp_path / "b.html").read_bytes() == once
    twice = [folder, folder / "mdm", folder / "result.json"]  # the same files again count once
    assert report(twice, tmp_path / "deep" / "er" / "c.html").read_bytes() == once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html", "deep", "runs"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", HOSTILE)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config[HOSTILE] = {HOSTILE: [HOSTILE]}
    config["machine"] = config["training"]["objective"] = HOSTILE
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = [
        result_row(HOSTILE, HOSTILE, 30.0, protocol=HOSTILE, estimator=HOSTILE, bound=HOSTILE),
        result_row("half \ud83d of a pair, 日本語, ‮right", "$x^$", 31.0, seed=HOSTILE),
        {"experiment": HOSTILE, HOSTILE: HOSTILE, "list": [HOSTILE]},
    ]
    (folder / "result.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    evil = hostile_sample()
    (folder / "samples.json").write_text(json.dumps({"samples": [evil]}), encoding="utf-8")
    html = report([tmp_path], tmp_path / "out.html", title=HOSTILE).read_text(encoding="utf-8")
    page = safe(html)
    assert page.text.count("alert(1)") > 10
    assert "alert" not in "".join(page.scripts)  # no text of the files is in the script at all
    assert "{{ 7*7 }}" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", html)


def hostile_sample() -> dict:
    pieces = [HOSTILE, "</span>", '" onclick="alert(1)', "", "\n\n", "&lt;"]
    return {
        "title": HOSTILE,
        "policy": HOSTILE,
        "exact_for": HOSTILE,
        "seed": HOSTILE,
        "nfe": HOSTILE,
        "pieces": pieces,
        "given": [False, True, False, False, False, False],
        "step": [0, -1, 7, 7, 3, 9],
        "confidence": [0.0, 1.0, 0.5, 1.0, 0.2, 1.0000001],
    }


def test_replay_holds_the_text_and_when_it_came() -> None:
    record = sample()
    html = replay_html(record)
    page = safe(html)
    assert record["text"] in page.text.replace("\r", "")
    tokens = [attributes for tag, attributes in page.tags if "data-at" in attributes]
    assert [int(token["data-at"] or 0) - 1 for token in tokens] == record["step"][4:]  # steps 0..n-1: the order itself
    assert tokens[0]["title"] == f"step {record['step'][4]}, probability {record['confidence'][4]:.3g}"
    assert len([1 for tag, attributes in page.tags if attributes.get("class") == "given"]) == 4
    sliders = [attributes for tag, attributes in page.tags if tag == "input"]
    assert [(slider["min"], slider["max"]) for slider in sliders] == [("0", "90")]
    controls = [attributes for _, attributes in page.tags if attributes.get("class") == "controls"]
    assert all("hidden" in attributes for attributes in controls)  # until the script shows them
    assert len(controls) == 1


def test_replay_counts_calls_not_steps() -> None:
    """Steps that reveal nothing are no calls: with something at steps 0, 3, 7 and 9 the slider has four places."""
    page = safe(replay_html(hostile_sample()))
    assert [attributes["max"] for tag, attributes in page.tags if tag == "input"] == ["4"]
    assert [attributes["data-steps"] for _, attributes in page.tags if "data-steps" in attributes] == ["0 3 7 9"]


def test_replay_page_is_whole_and_escaped() -> None:
    page = safe(replay_page(hostile_sample()))
    assert page.tags[0][0] == "html"
    assert "alert" not in "".join(page.scripts)
    assert safe(replay_page({"text": "only <b>text</b>"})).text.count("only <b>text</b>") == 1


def test_a_title_that_the_page_does_not_bear_is_shown(tmp_path: Path) -> None:
    """Of several texts each has its own; of one, the page bears it where the page is made for it."""
    path = tmp_path / "samples.json"
    for titles, title, alone in ((["a", "b"], "a", False), (["a"], "mine", False), (["a"], "a", True)):
        path.write_text(json.dumps({"samples": [sample(title=each) for each in titles]}), encoding="utf-8")
        html = report([path], tmp_path / "out.html", title=title).read_text(encoding="utf-8")
        assert ('class="alone"' in html) == alone
    assert 'class="alone"' in replay_page(sample())


def test_text_on_a_colour_is_readable() -> None:
    """WCAG 2: contrast of at least 4.5 between each token's text and its ground."""
    looks = re.findall(r"--b:(#\w{6});--f:(#\w{3});", replay_html(sample(n=200)))
    assert len(looks) == 200
    for ground, ink in looks:
        channels = [int(ground[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        light = np.dot(linear, (0.2126, 0.7152, 0.0722))
        assert (1.05 / (light + 0.05) if ink == "#fff" else (light + 0.05) / 0.05) >= 4.49


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"step": [1, 2]}, "'step' has 2 entries where 'pieces' has 94"),
        ({"given": "yes"}, "'given' must be a list of true or false"),
        ({"confidence": [2.0] * 94}, "'confidence' must be a list of numbers from 0 to 1"),
        ({"confidence": [math.nan] * 94}, "'confidence' must be a list of numbers from 0 to 1"),
        ({"pieces": [1]}, "'pieces' must be a list of strings"),
        ({"step": [-1] * 94}, "'step' is negative at a token that was not given"),
        ({"text": 5}, "needs a 'text'"),
    ],
)
def test_bad_samples_are_named(tmp_path: Path, change: dict, fault: str) -> None:
    with pytest.raises(ValueError, match="Once upon a time.*" + re.escape(fault)):
        replay_html(sample() | change)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"samples": [sample(), sample() | change]}), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}, sample 2: {fault}")):
        report([path], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_cut_off_last_line_is_ignored_and_any_other_fault_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "tiny", steps=80)
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    page = report([folder], tmp_path / "a.html").read_bytes()
    path.write_bytes(whole + b'{"kind": "train", "step": 81, "loss": 3.\xc3')
    assert report([folder], tmp_path / "b.html").read_bytes() == page
    lines = whole.split(b"\n")
    for bad, fault in (
        (b"{nonsense}", "JSON"),
        (b"[1, 2]", "no JSON object"),
        (b'{"kind": "train", "step": 3}', "'loss' must be a number, and is missing"),
        (b'{"kind": "train", "step": 3, "loss": "low"}', "'loss' must be a number, not \"low\""),
        (b'{"kind": "train", "step": 3, "loss": true}', "'loss' must be a number, not true"),
        (b'{"kind": "validation", "step": null, "nats_per_token": 1}', "'step' must be a number, and is null"),
    ):
        path.write_bytes(b"\n".join([*lines[:2], bad, *lines[2:]]))
        with pytest.raises(ValueError, match="line 3: .*" + re.escape(fault)) as caught:
            report([folder], tmp_path / "c.html")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unfinished_run_is_told_by_what_it_has_spent(tmp_path):
    folder = write_run(tmp_path / "run", "half", steps=400)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    whole = config["budget"]
    config["training"]["steps"], config["budget"] = 800, {name: 2 * value for name, value in whole.items()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ((_, (row,)),) = runs_table(find([folder]).runs).groups
    assert row[4] == "400 of 800"
    assert row[5:8] == [count(whole["tokens"]), power(whole["flops_6nd"]), power(whole["flops_true"])]


def test_malformed_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        report([tmp_path / "absent"], tmp_path / "out.html")
    with pytest.raises(ValueError, match="nothing to report"):
        report([tmp_path], tmp_path / "out.html")
    with pytest.raises(ValueError, match="nothing to report"):
        report([], tmp_path / "out.html")
    path = tmp_path / "result.json"
    for content, fault in (
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ("[" * 100_000, "not JSON"),
        ("{}", "neither 'rows' nor 'samples'"),
        ('{"rows": [1]}', "'rows' must be a list of objects"),
        ('{"rows": [{"experiment": "perplexity"}]}', "row 1: 'perplexity' must be a number, and is missing"),
        ('{"rows": [{"experiment": "perplexity", "perplexity": 3, "tokens": "many"}]}', "row 1: 'tokens' must be"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=re.escape(fault)) as caught:
            report([path], tmp_path / "out.html")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps({"rows": results()}), encoding="utf-8")
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        report([path], tmp_path)


def test_missing_and_unbounded_numbers_leave_gaps(tmp_path: Path) -> None:
    """A diverged run logs null; a folder may hold a configuration of something else; nothing there is an error."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "gpt2", "training": 3}', encoding="utf-8")
    (tmp_path / "diverged").mkdir()
    at = {"kind": "train", "tokens": 1, "flops": 0}
    rows = [{**at, "step": 1, "loss": 3.0}, {**at, "step": 2, "loss": None}, {**at, "step": 3, "loss": math.nan}]
    rows += [{"kind": "validation", "step": 3, "nats_per_token": math.inf}, {"kind": "novel", "x": 1}]
    write_lines(tmp_path / "diverged" / "metrics.jsonl", rows)
    numbers = [None, math.inf, 1e300, 12.0]
    bare = [{"experiment": "perplexity", "perplexity": number} for number in numbers]
    (tmp_path / "result.json").write_text(json.dumps({"rows": bare}), encoding="utf-8")
    page = safe(report([tmp_path], tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "gpt2" in page.text
    assert "12" in page.cells
    assert "nan" not in page.text


def test_resumed_steps_count_once_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, "same", steps=8)
    rows = [{"kind": "train", "step": step, "loss": loss} for step, loss in ((1, 5.0), (2, 4.0), (2, 4.5), (1, 5.5))]
    write_lines(tmp_path / "a" / "metrics.jsonl", rows)
    found = find([tmp_path])
    assert [run.name for run in found.runs] == ["same (a)", "same (b)"]
    assert [(row["step"], row["loss"]) for row in found.runs[0].train] == [(1, 5.5), (2, 4.5)]


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / ".cache", "hidden")
    with pytest.raises(ValueError, match="nothing to report"):
        find([tmp_path / "runs"])
    assert find([tmp_path / "runs" / ".cache"]).runs[0].name == "hidden"


def test_smooth_keeps_the_mean() -> None:
    """Bins partition the rows, so each bin's mean is within its rows' range, and a constant stays what it is."""
    x = np.arange(0, 50_000.0)
    across, means = smooth(x.tolist(), np.full(50_000, 2.5).tolist())
    assert means == [2.5] * len(across)
    assert across == sorted(across)
    assert across[0] == 1  # 0 is not on a logarithmic axis
    assert 30 < len(across) <= 60
    line = smooth(x.tolist(), (3 * x).tolist())
    assert np.allclose(np.array(line[1]), 3 * np.array(line[0]))
    assert smooth([], []) == ([], [])
    assert smooth([7.0, 7.0], [1.0, 2.0]) == ([7.0], [1.5])


def test_runs_without_a_measure_have_no_figure() -> None:
    empty = Run("x", Path("x"), {}, [{"step": 1, "loss": 2.0}], [])
    assert loss_figure([empty], "flops") is None
    point = Run("y", Path("y"), {}, [], [{"step": 1, "tokens": 10, "nats_per_token": 2.0, "stderr": 0.1}])
    assert (loss_figure([empty, point], "tokens") or "").startswith("<svg")
    assert len({style(i) for i in range(36)}) == 36


def test_the_legend_names_the_curves_that_are_drawn(tmp_path: Path) -> None:
    """A run without metrics takes no colour: the first of the others has the first one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"name": "a"}', encoding="utf-8")
    for name, loss in (("b", 3.0), ("c", 2.0)):
        at = {"step": 1, "tokens": 10, "flops": 1e3}
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "metrics.jsonl", [{"kind": "validation", **at, "nats_per_token": loss}])
    html = report([tmp_path], tmp_path / "out.html").read_text(encoding="utf-8")
    legend = dict(re.findall(r'<b style="color:(#\w+)">.</b> (\w)</span>', html))
    assert legend == {style(0)[0]: "b", style(1)[0]: "c"}
    for figure in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        points = re.findall(r'<use [^>]*?y="([\d.]+)"[^>]*?stroke: (#\w+)', figure)
        down = sorted({(float(y), colour.upper()) for y, colour in points if colour.upper() in legend})
        assert [legend[colour] for _, colour in down] == ["b", "c"]  # the larger loss stands higher


def test_labels_of_different_things_differ() -> None:
    """Shortened to the same text, too wide, or the same twice: only a label that is repeated is left out."""
    long = [f"prefix-of-a-long-name-{each}-step-10000-final-model" for each in ("ONE", "TWO")]
    assert shorten([*long, "x" * 30, long[0], " "]) == [
        *("prefix-of-a-long…al-model (1)", "prefix-of-a-long…al-model (2)", "x" * 30, "prefix-of-a-long…al-model (1)"),
        "–",
    ]
    labels = [*long, long[1], "W" * 30, "日本語" * 10]
    dots = [Dot(label, "123,456,789.00", 3.0, 0.1) for label in labels]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # axes that no room is left for
        figure = dots_figure(dots, "unit", "spoken")
    said = [text.text for text in ET.fromstring(figure).iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in said if text and text.startswith("prefix")] == shorten(long)


def test_svg_of_any_figure_is_safe_to_inline() -> None:
    figure = Figure()
    figure.add_subplot().set_title(HOSTILE.replace("\x00", "").replace("\x1b", ""), parse_math=False)
    text = svg(figure, 'a "label" <b>')
    assert ET.fromstring(text).get("aria-label") == 'a "label" <b>'
    safe(text)


def test_numbers_read_well() -> None:
    assert [plain(v) for v in (None, 1234, 0.0123456, 38.26, 1e-7, -2, math.nan, math.inf, True)] == [
        *("–", "1,234", "0.01235", "38.26", "1.000 × 10⁻⁷", "−2", "not a number", "∞", "–")
    ]
    assert [count(v) for v in (12, 1536, 43_500_000, 999_999, 1.03e9, None)] == [
        *("12", "1.54 K", "43.5 M", "1,000 K", "1.03 B", "–")
    ]
    assert [duration(v) for v in (0.5, 59.94, 93.2, 3600, 11_400, 187_200)] == [
        *("0.5 s", "59.9 s", "1 min 33 s", "1 h", "3 h 10 min", "2 d 4 h")
    ]
    assert with_error(38.2634, 0.0131, 1.2) == ("38.263", "0.013", "1.200")
    assert with_error(38.2634, None) == ("38.26", "–")
    assert with_error(35.0, 2.0, 1e-9) == ("35.0", "2.0", "1.0 × 10⁻⁹")  # a rounding error
    assert with_error(35.0, 1e-9) == ("35.00000000", "1.0 × 10⁻⁹")
    assert with_error(-1e-17, 0.0054) == ("0.0000", "0.0054")  # a zero, whatever the last bits of a library
    assert with_error(-1.2346e60, 1e58, 0.0) == ("−1.235 × 10⁶⁰", "1.0 × 10⁵⁸", "0")
    assert power(1.234e18) == "1.23 × 10¹⁸"


def test_result_files_may_have_any_name(tmp_path: Path) -> None:
    """Other JSON in the folder is not the report's business; a damaged file of its own names is."""
    write_run(tmp_path / "run", "a")
    (tmp_path / "ppl.json").write_text(json.dumps({"rows": results()}), encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text('{"model": {"rows": 3}}', encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    assert len(find([tmp_path]).rows) == len(results())
    (tmp_path / "result.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"result\.json: not JSON"):
        find([tmp_path])


def test_an_experiment_that_is_not_done_is_its_runs(tmp_path: Path) -> None:
    """What was measured on one of them means nothing by itself."""
    write_run(tmp_path / "arm-0", "a")
    (tmp_path / "arm-0" / "result.json").write_text('{"cell": "arm-0", "rows": [{"model": "ARM"}]}', encoding="utf-8")
    found = find([tmp_path])
    assert (len(found.runs), found.rows) == (1, [])


def test_history_must_fit_its_sample(tmp_path: Path) -> None:
    """An event outside the text, at a given token, or of another form is a fault of the file, in one line."""
    good = {"pieces": ["a", "b"], "given": [True, False], "step": [-1, 4], "confidence": [1.0, 0.5]}
    for event, fault in (
        ([0, 2, "x", 0.5], "changes position 2"),
        ([0, 0, "x", 0.5], "changes position 0"),
        ([0, 1, 3, 0.5], "must be a list of [step, position"),
        ([-1, 1, "x", 0.5], "must be a list of [step, position"),
        ([0, 1, "x", 2.0], "must be a list of [step, position"),
        ("x", "must be a list of [step, position"),
    ):
        with pytest.raises(ValueError, match=re.escape(fault)):
            replay_html({**good, "history": [event]})
    page = replay_html({**good, "history": [[0, 1, HOSTILE, 0.5], [2, 1, None, 0.0], [4, 1, "b", 0.5]]})
    assert "<img" not in page
    assert page.count("data-past=") == 1
