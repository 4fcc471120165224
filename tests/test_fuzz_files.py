"""Files that are damaged, foreign or malicious: a line that says which and what, never a traceback, a hang or a flood.

A file is mutated from a good one, so that what is wrong lies deep, or made of anything at all.
"""

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import limited
from test_cli import make_run
from test_report import generation_row, result_row, sample, write_run

from unmask import grammar, load
from unmask.checkpoint.tensors import write_published
from unmask.cli import main
from unmask.conditioned import ConditionedConfig
from unmask.data import byte_tokenizer, load_manifest, load_split, prepare
from unmask.families import DREAM, LLADA, LLAMA, MDLM, RADD, SEDD, SMDM, network_of, published_config, to_published
from unmask.transformer import TransformerConfig

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited through /proc and RLIMIT_AS")

EXAMPLES = int(os.environ.get("UNMASK_EXAMPLES", "12"))  # `make fuzz` takes 500
LIGHT = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2, 3, 10**6, 10**9, 2**31, 2**62, 2**64, 10**400, 1e308, float("nan"), float("inf"), 0.5]),
    st.floats(),
    st.sampled_from(["", "\x00", "../../etc/passwd", "{{9}}", "NaN", "float32", "llama", "é" * 50, "\ud800"]),
    st.text(max_size=8),
)
KEYS = st.text(max_size=5)
JSON = st.recursive(STRANGE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


def places(value: object, here: tuple = ()) -> list[tuple]:
    """Every path into a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    return [here, *(path for key, item in inner for path in places(item, (*here, key)))]


@st.composite
def mutated(draw, good: object) -> object:
    """A copy of a good value in which one to three entries are dropped or replaced by anything."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            return draw(JSON)
        inner = value
        for key in path[:-1]:
            inner = inner[key]  # type: ignore[index]
        if draw(st.booleans()):
            inner[path[-1]] = draw(JSON)  # type: ignore[index]
        else:
            del inner[path[-1]]  # type: ignore[attr-defined]
    return value


def text_of(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """Bytes cut short, with some overwritten, or anything."""
    cut = st.integers(0, len(good)).map(lambda n: good[:n])
    place = st.tuples(st.integers(0, min(len(good), 600) - 1), st.binary(min_size=1, max_size=8))
    written = st.lists(place, min_size=1, max_size=4).map(lambda changes: overwrite(good, changes))
    return cut | written | st.binary(max_size=64)


def overwrite(good: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    data = bytearray(good)
    for at, more in changes:
        data[at : at + len(more)] = more
    return bytes(data)


def one_line(call: Callable[[], object], *names: str) -> None:
    """A call ends well, or in a ValueError of one line that names one of the files."""
    try:
        with limited():
            call()
    except ValueError as error:
        text = str(error)
        assert "\n" not in text.strip() or len(text.splitlines()) == 1, text
        assert any(name in text for name in names), text


def command(capsys, *words: object) -> str:
    """What a command printed to standard error; it ended well, or with exit code 2 and one line."""
    code = 0
    try:
        with limited():
            main([str(word) for word in words])
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr().err
    assert code in (0, 2), (code, said)
    assert "Traceback" not in said
    if code:
        assert said.count("\n") == 1, said
        assert said.startswith("error: ")
    return said


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("fuzz") / "run")


def test_config(run, capsys):
    path = run / "config.json"
    good = path.read_bytes()

    @LIGHT
    @given(mutated(json.loads(good)).map(text_of) | damaged(good))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        command(capsys, "sample", "--checkpoint", run, "--length", "2")

    check()
    path.write_bytes(good)


SIZES = {"vocab": 40, "layers": 2, "heads": 2, "width": 16}
PUBLISHED = [
    (RADD, TransformerConfig(**SIZES, flavour="dit")),
    (SEDD, ConditionedConfig(**SIZES, condition=8, reading="scaled score")),
    (MDLM, ConditionedConfig(**SIZES, condition=8, timed=False)),
    (SMDM, TransformerConfig(**SIZES)),
    (LLADA, TransformerConfig(**SIZES, mask_id=39)),
    (LLAMA, TransformerConfig(**SIZES, causal=True, rotary_scaling=(8.0, 1.0, 4.0, 32.0))),
    (DREAM, TransformerConfig(**SIZES, mask_id=39, shifted=True, qkv_bias=True)),
]


@pytest.mark.parametrize(("family", "config"), PUBLISHED, ids=[family.name for family, _ in PUBLISHED])
def test_published_configurations(family, config, tmp_path):
    tensors = to_published(family, network_of(config, 0).state_dict(), config)
    write_published(tmp_path / "model.safetensors", tensors)
    good = published_config(family, config, 32)

    @LIGHT
    @given(mutated(good).map(text_of))
    def check(data: bytes) -> None:
        (tmp_path / "config.json").write_bytes(data)
        one_line(lambda: load(tmp_path).length, tmp_path.name)

    check()


def test_weights(run, capsys):
    path = run / "model.safetensors"
    good = path.read_bytes()
    size = int.from_bytes(good[:8], "little")
    header, rest = json.loads(good[8 : 8 + size]), good[8 + size :]

    def framed(value: object) -> bytes:
        text = text_of(value)
        return len(text).to_bytes(8, "little") + text + rest

    lies = st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little") + good[8:])

    @LIGHT
    @given(mutated(header).map(framed) | damaged(good) | lies)
    def check(data: bytes) -> None:
        path.unlink()  # what is mapped from the last example stays what it was
        path.write_bytes(data)
        command(capsys, "sample", "--checkpoint", run, "--length", "2")

    check()
    path.write_bytes(good)


def test_tokenizers(run, capsys):
    path = run / "tokenizer.json"
    good = path.read_bytes()
    small = json.loads(good)
    small["model"]["vocab"] = dict(list(small["model"]["vocab"].items())[:6])

    @LIGHT
    @given(mutated(small).map(text_of) | damaged(good))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        command(capsys, "sample", "--checkpoint", run, "--length", "2")

    check()
    path.write_bytes(good)


def test_metrics_and_results(tmp_path, capsys):
    """watch, report and compare read what any program may have written."""
    run = write_run(tmp_path / "a", "a", steps=8)
    shutil.copytree(run, tmp_path / "b")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = {"rows": [result_row("m", "PTB", 9.0), generation_row("g", nfe=3.0)], "samples": [sample(n=4)]}
    kinds["rows"] += [
        {"experiment": "tasks", "task": "piqa", "model": "m", "metric": "acc", "value": 0.5, "stderr": 0.1},
        {
            "experiment": "comparison",
            "first": "a",
            "second": "b",
            "unit": "nats per token",
            "difference": 0.1,
            "stderr": 0.2,
        },
    ]
    kinds["samples"][0]["history"] = [[0, 5, "x", 0.5]]

    @LIGHT
    @given(mutated(rows), mutated(kinds), st.binary(max_size=9))
    def check(lines: object, results: object, tail: bytes) -> None:
        listed = lines if isinstance(lines, list) else [lines]
        (run / "metrics.jsonl").write_bytes(b"".join(text_of(row) + b"\n" for row in listed) + tail)
        (run / "result.json").write_bytes(text_of(results))
        command(capsys, "watch", run)
        command(capsys, "report", tmp_path, "--out", tmp_path / "page.html")
        command(capsys, "compare", run, tmp_path / "b")

    check()


def test_results_compared(tmp_path, capsys):
    values = {"nats": [1.0, 2.0], "tokens": [3, 4], "documents": [0, 1]}
    row = result_row("m", "PTB", 9.0, split="test", data="x", tokenizer="t", values=values)
    good = {"rows": [row, generation_row("g", nfe=3.0)]}
    (tmp_path / "good.json").write_bytes(text_of(good))

    @LIGHT
    @given(mutated(good).map(text_of) | damaged(text_of(good)))
    def check(data: bytes) -> None:
        (tmp_path / "bad.json").write_bytes(data)
        command(capsys, "compare", tmp_path / "good.json", tmp_path / "bad.json")

    check()


def test_manifests(tmp_path):
    source = tmp_path / "text.txt"
    source.write_text("a line of text about nothing much.\n\n" * 60, encoding="utf-8")
    folder = prepare(str(source), tmp_path / "d", tokenizer="bytes", validation=0.2)
    path = folder / "manifest.json"
    good = path.read_bytes()

    @LIGHT
    @given(mutated(json.loads(good)).map(text_of) | damaged(good))
    def check(data: bytes) -> None:
        path.write_bytes(data)

        def read() -> None:
            load_manifest(str(folder))
            for name in ("train", "validation"):
                split = load_split(folder, name)
                assert len(split.tokens) >= 0
                assert len(split.names) >= 0

        one_line(read, folder.name)

    check()


def test_samples_judged(tmp_path, capsys):
    """`evaluate generation --samples` of any file."""
    judge = make_run(tmp_path / "judge", causal=True)
    good = {"samples": [sample(n=4), sample(n=5)]}

    @settings(LIGHT, max_examples=EXAMPLES // 2)
    @given(mutated(good).map(text_of) | damaged(text_of(good)))
    def check(data: bytes) -> None:
        (tmp_path / "samples.json").write_bytes(data)
        command(capsys, "evaluate", "generation", "--judge", judge, "--samples", tmp_path / "samples.json")

    check()


TOKENIZER = byte_tokenizer()
PIECES = [*"ab()[]*+?|^$.-,é\\\0", "{2,3}", "{0,900}", "{9999}", "\\d", "\\w", "\\1", "(?=a)", "(?i)", "[^a]", "\\b"]
PIECES += ["(?P<x>", "(?:", "*?", "{,}", "\\Z", "\U0001f600"]


@LIGHT
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_regular_expressions(pattern):
    """What can be compiled is compiled, quickly and small; what cannot is refused in a line that quotes it."""
    one_line(lambda: grammar.regex(TOKENIZER, pattern), "regular expression", "constraint")


SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "b": {"enum": ["x", None]},
        "c": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["b"],
    "additionalProperties": False,
    "$defs": {"d": {"$ref": "#/$defs/d"}},
    "anyOf": [{"minLength": 3, "maxLength": 5}, {"const": {"k": [1, 2]}}],
}


@LIGHT
@given(mutated(SCHEMA))
def test_schemas(schema):
    if isinstance(schema, dict):
        one_line(lambda: grammar.json_schema(TOKENIZER, schema), "schema", "constraint")
