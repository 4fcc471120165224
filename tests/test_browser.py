"""The report in headless Chromium: on a phone, in print, light and dark, without a script, and played step by step."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser
from test_report import generation_row, sample, write_all

from unmask.report.page import report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)")

REWRITTEN = {
    "title": "an erased word",
    "policy": "x" * 300,
    "pieces": ["The", " sea", " is", " calm"],
    "given": [True, False, False, False],
    "step": [-1, 5, 1, 3],
    "confidence": [1.0, 0.9, 0.5, 0.25],
    # "sky" at step 0, erased at 2, "ship" at 3, erased at 4, "sea" at 5
    "history": [
        *([0, 1, " sky", 0.125], [1, 2, " is", 0.5], [2, 1, None, 0.0], [3, 3, " calm", 0.25]),
        *([3, 1, " ship", 0.75], [4, 1, None, 0.0], [5, 1, " sea", 0.9]),
    ],
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_all(tmp_path_factory.mktemp("runs"))
    tasks = {"experiment": "tasks", "metric": "acc", "bound": "exact", "documents": 500, "stderr": 0.02}
    pair = {"experiment": "comparison", "first": "a", "second": "b", "unit": "nats per token", "stderr": 0.02}
    rows = [generation_row("mdm", nfe=nfe, policy="Tweedie(4)") for nfe in (4.0, 16.0)] + [
        generation_row("reference: books", nfe=None, yardstick=True),
        *({**tasks, "task": task, "model": model, "value": 0.6} for task in ("piqa", "boolq") for model in "ab"),
        {**pair, "difference": -0.1, "stderr_mc": 0.01, "corpus": "PTB", "protocol": "radd", "paired": "no"},
    ]
    (folder / "more").mkdir()
    (folder / "more" / "result.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    samples = [REWRITTEN, sample(title="x" * 300)]
    (folder / "more" / "samples.json").write_text(json.dumps({"samples": samples}), encoding="utf-8")
    return report([folder], folder / "report.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def channel(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def luminance(colour: str) -> float:
    red, green, blue = (channel(int(part) / 255) for part in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_and_can_be_read(page: Path, chromium: Browser, width: int, dark: bool) -> None:
    """Nothing is wider than the screen, text has the contrast of WCAG 2 (4.5), figures show, nothing is fetched."""
    chromium.open(page, width=width, dark=dark)
    assert chromium.value("document.documentElement.scrollWidth") <= width
    for selector in ("body", "section > p", "summary", "nav a", "td", ".replay .facts dd", ".replay .legend span"):
        ink = chromium.value(f"getComputedStyle(document.querySelector('{selector}')).color")
        paper = chromium.value("getComputedStyle(document.body).backgroundColor")
        bright, dull = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (bright + 0.05) / (dull + 0.05) >= 4.5, selector
    smallest = "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
    assert chromium.value(smallest) > 8
    sizes = chromium.value("[...document.querySelectorAll('svg')].map(f => f.getBoundingClientRect().width)")
    assert min(sizes) > 300
    asked = [event["params"]["request"]["url"] for event in chromium.events if "request" in event.get("params", {})]
    assert {url for url in asked if not url.startswith("file:")} == set()
    wrong = [event for event in chromium.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert wrong == []


def test_every_section_is_there(page: Path, chromium: Browser) -> None:
    chromium.open(page)
    sections = chromium.value("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert sections == [
        *("perplexity", "generation", "tasks", "comparisons", "training", "replays", "experiments", "runs")
    ]
    for name in sections[:5]:
        assert chromium.value(f"document.querySelectorAll('#{name} svg').length") > 0, name


SHOWN = """[...document.querySelectorAll('.replay')].find(r => r.innerText.includes('an erased word'))"""


def test_what_was_erased_is_seen_on_the_way(page: Path, chromium: Browser) -> None:
    """Step by step: each writing, each erasure, each rewriting, and back again."""
    chromium.open(page)
    chromium.value(f"box = {SHOWN}; slot = box.querySelectorAll('.t')[0]; 0")

    def at(call: int) -> tuple[str, bool, bool, bool]:
        chromium.value(f"s = box.querySelector('input'); s.value = {call}; s.dispatchEvent(new Event('input')); 0")
        classes = chromium.value("[...slot.classList]")
        return chromium.value("slot.textContent"), *(name in classes for name in ("blank", "now", "gone"))

    expected = {
        0: (" sky", True, False, False),
        1: (" sky", False, True, False),
        2: (" sky", False, False, False),
        3: (" sky", True, False, True),
        4: (" ship", False, True, False),
        5: (" ship", True, False, True),
        6: (" sea", False, True, False),
    }
    for call in (0, 1, 2, 3, 4, 5, 6, 3, 0, 4):
        assert at(call) == expected[call]
    at(3)
    assert "1 erased" in chromium.value("box.querySelector('output').textContent")
    assert "probability 0.125; later erased" in chromium.value("slot.title")
    assert "2 tokens erased on the way" in chromium.value("box.innerText")
    chromium.value("box.querySelector('.forward').click()")
    assert chromium.value("slot.textContent") == " ship"
    chromium.value("box.querySelector('.play').click()")
    assert chromium.value("box.querySelector('.play').textContent") == "Pause"


def test_without_a_script_the_text_is_there(page: Path, chromium: Browser) -> None:
    """Everything but the playing: the final text, its colours, and what stood there before in words."""
    chromium.open(page, script=False)
    dom = chromium.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
    html = chromium.call("DOM.getOuterHTML", nodeId=dom)["outerHTML"]
    assert ">The</span>" in html
    assert "before: “ sky” at step 0, probability 0.125; erased at step 2; “ ship” at step 3" in html
    hidden = chromium.call("DOM.querySelector", nodeId=dom, selector=".controls")["nodeId"]
    style = chromium.call("CSS.enable") or chromium.call("CSS.getComputedStyleForNode", nodeId=hidden)
    assert {"name": "display", "value": "none"} in style["computedStyle"]


def test_it_prints(page: Path, chromium: Browser, tmp_path: Path) -> None:
    """On white, every text whole, nothing to press, on a few sheets."""
    chromium.open(page, dark=True)
    chromium.value(f"s = {SHOWN}.querySelector('input'); s.value = 0; s.dispatchEvent(new Event('input')); 0")
    chromium.pdf(tmp_path / "page.pdf")
    sheets = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes()))
    assert 2 <= sheets <= 15
    chromium.call("Emulation.setEmulatedMedia", media="print")
    paper = chromium.value("getComputedStyle(document.body).backgroundColor")
    assert paper in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")
    assert chromium.value("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert chromium.value("document.querySelectorAll('.blank').length") == 0, "printing shows the finished text"
