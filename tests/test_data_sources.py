"""Every kind of source gives the documents it was made of, and says in one line what is wrong with it."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts import POEM, library, refused

from unmask.cli import main
from unmask.data import Plan, Tokenizer, detokenise, documents, estimate, load_manifest, load_split, prepare
from unmask.data.planning import learnt_from
from unmask.data.reading import parts_of
from unmask.data.sides import Sides
from unmask.data.sources import source_of

ROWS = [
    {"text": "one\r\ntwo", "date": "2020-02-29T10:00:00", "other": 1},
    {"text": "  ", "date": None},
    {"text": None},
    {"text": "naïve 日本語 🐈", "date": "2021-02-29"},
    {"text": "three", "date": "2020/03/01"},
]
FOUND = [("one\ntwo", "2020-02-29"), ("naïve 日本語 🐈", None), ("three", "2020-03-01")]


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n\n" for row in rows).encode()


def compressed(path: Path, data: bytes) -> Path:
    """The file, compressed as its suffix says."""
    if path.suffix == ".zst":
        path.write_bytes(pytest.importorskip("zstandard").compress(data))
    else:
        kinds = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
        path.write_bytes(kinds.get(path.suffix, bytes)(data))
    return path


def parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    write_table = pytest.importorskip("pyarrow.parquet").write_table
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row.get(name) for row in rows] for name in ("text", "date")}
    write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def read(source: Path | str) -> list[tuple[str, str | None]]:
    return [(document.text, document.date) for document in documents(str(source))]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst", ".bz2"])
def test_records_and_texts_compressed_or_not(tmp_path: Path, suffix: str) -> None:
    path = compressed(tmp_path / f"a.jsonl{suffix}", lines(ROWS))
    assert read(path) == FOUND
    assert [document.name for document in documents(str(path))] == [f"a.jsonl{suffix}:{line}" for line in (1, 7, 9)]
    path = compressed(tmp_path / f"a.txt{suffix}", b"\xef\xbb\xbfone\r\ntwo \xe6\x97\xa5\r")
    assert read(path) == [("one\ntwo 日\n", None)]
    whole = path.read_bytes()
    if suffix:
        for damaged in (whole[: len(whole) // 2], whole[:8] + b"\xff" * 9 + whole[17:]):
            path.write_bytes(damaged)
            refused(lambda: read(path), str(path))


def test_parquet_and_folders_of_everything(tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "c.parquet", ROWS)
    assert read(tmp_path / "in" / "c.parquet") == FOUND
    compressed(tmp_path / "in" / "a.jsonl.gz", lines(ROWS))
    compressed(tmp_path / "in" / "b.txt.xz", b"plain")
    (tmp_path / "in" / "readme.md").write_text("no text to learn", encoding="utf-8")
    for hidden in (".hidden.txt", ".checkpoints/a-checkpoint.txt"):
        (tmp_path / "in" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / hidden).write_text("nor this", encoding="utf-8")
    assert read(tmp_path / "in") == [*FOUND, ("plain", None), *FOUND]
    shares = [part.read for part in source_of(str(tmp_path / "in")).read()]
    assert shares == sorted(shares)
    assert shares[-1] == 1


SMALL = (".gz", ".xz", ".bz2")


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.xz", "x.zip"])
def test_archives(tmp_path: Path, name: str) -> None:
    members = {"./d/a.txt": b"first", "b.jsonl": lines(ROWS), "c.md": b"no text", "d/E.TXT": b"last"}
    members |= {f"f.txt{suffix}": compressed(tmp_path / f"one{suffix}", b"small").read_bytes() for suffix in SMALL}
    members |= dict.fromkeys(["__MACOSX/d/._a.txt", "d/.b.txt", ".d/a.txt", "d/.d/a.txt"], b"hidden")
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
    else:
        mode = {".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".tar": "w"}[Path(name).suffix]
        with tarfile.open(tmp_path / name, mode) as archive:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    assert read(tmp_path / name) == [("first", None), *FOUND, ("last", None), *[("small", None)] * len(SMALL)]
    assert next(iter(documents(str(tmp_path / name)))).name == f"{name}/./d/a.txt"


def test_names_in_archives_that_are_not_utf8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("caf\udce9.txt"))
    refused(lambda: read(tmp_path / "x.tar"), "x.tar/caf\\udce9.txt", "not UTF-8", "rename")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("é.txt", "text")
    whole = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(whole.replace("é".encode(), b"\xe9\xe9"))
    refused(lambda: read(tmp_path / "x.zip"), "cannot read", "x.zip", "utf-8")


@pytest.mark.parametrize(
    ("given", "date"),
    [
        ("20200131", "2020-01-31"),
        (20200131, "2020-01-31"),
        ("20200131T10:00", "2020-01-31"),
        ("2020-01/31", None),
        ("2020-01", None),
        ("2020", None),
        ("2020-1-31", None),
        (1580428800, None),
    ],
)
def test_dates_are_days_or_unknown(tmp_path: Path, given: object, date: str | None) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "one", "date": given}]))
    assert read(tmp_path / "a.jsonl") == [("one", date)]


def test_data_sets_of_the_hub_from_a_folder_laid_out_like_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loading code is that of the hub; only the place differs."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "org" / "name"
    for config, text in (("small", "few"), ("large", "many")):
        for split in ("train", "test"):
            rows = [{"text": f"{text} {split} {i}", "date": f"2020-01-0{i + 1}"} for i in range(3)]
            parquet(folder / config / f"{split}-00000-of-00001.parquet", rows)
    kinds = [
        {"config_name": config, "data_files": [{"split": s, "path": f"{config}/{s}-*"} for s in ("train", "test")]}
        for config in ("small", "large")
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(kinds)}\n---\n", encoding="utf-8")
    spec = f"hf://{folder}:large"
    assert read(spec) == [(f"many train {i}", f"2020-01-0{i + 1}") for i in range(3)]
    assert read(f"{spec}#test[:2]") == [(f"many test {i}", f"2020-01-0{i + 1}") for i in range(2)]
    one = prepare(f"hf://{folder}:small", tmp_path / "one", tokenizer="bytes")
    assert sum(len(load_split(one, split).names) for split in ("train", "validation")) == 3
    refused(lambda: prepare(f"hf://{folder}:large", one, tokenizer="bytes"), "source", "delete")
    refused(lambda: prepare(f"hf://{folder}:small#test", one, tokenizer="bytes"), "source", "delete")
    two = prepare(f"hf://{folder}:small#train[:2]", tmp_path / "two", tokenizer="bytes")
    refused(lambda: prepare(f"hf://{folder}:small#train[1:]", two, tokenizer="bytes"), "source", "delete")
    refused(lambda: source_of(f"hf://{folder}:none"), "none", "[#SPLIT]")
    refused(lambda: source_of(f"hf://{folder}:large#dev"), "dev")
    refused(lambda: source_of(spec, field="body"), "columns", "text", "'body'", "--field")


def test_bad_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    cases = {
        b'{"text": "x"}\n{"body": "y"}\n': ("line 2", "body", "--field"),
        b'{"text": "x"}\n["y"]\n': ("line 2", "no object"),
        b'{"text": "x"}\n{"text": 3}\n': ("line 2", "int", "--field"),
        b'{"text": "x"}\n{"text"\n': ("line 2", "not JSON"),
        b"[" * 100_000: ("line 1", "not JSON"),
        b'{"text": "caf\xe9"}': ("line 1", "not UTF-8"),
        b'{"text": "\\ud800"}': ("line 1", "surrogate"),
        b'{"text": " "}\n': ("empty",),
        b"": ("empty",),
    }
    for data, words in cases.items():
        path.write_bytes(data)
        refused(lambda: read(path), "a.jsonl", *words)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing PAR1")
    refused(lambda: read(tmp_path / "b.parquet"), "b.parquet", "restore")
    parquet(tmp_path / "c.parquet", ROWS)
    found = source_of(str(tmp_path / "c.parquet"), field="body")
    refused(lambda: list(found.read()), "text, date", "'body'", "--field")
    for name in ("x.zip", "x.tar"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        refused(lambda name=name: read(tmp_path / name), name)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([f"a.{kind}" for kind in ["txt", "jsonl", "gz", "txt.xz", "zip", "tar", "bz2", "zst", "parquet"]]),
    st.data(),
)
def test_damaged_files_of_any_kind_are_refused_in_one_line(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Bytes changed, cut or made up: the documents or one line, and never another error."""
    path = tmp_path / name
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(st.binary(max_size=200)))
    else:
        whole = io.BytesIO()
        if name == "a.zip":
            with zipfile.ZipFile(whole, "w") as archive:
                archive.writestr("b.txt", "hello")
        elif name == "a.tar":
            with tarfile.open(fileobj=whole, mode="w") as archive:
                archive.addfile(tarfile.TarInfo("b.txt"))
        elif name == "a.parquet":
            whole = io.BytesIO(parquet(path, ROWS).read_bytes())
        else:
            whole = io.BytesIO(compressed(path, lines(ROWS)).read_bytes())
        damaged = bytearray(whole.getvalue())
        for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
            damaged[at] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    try:
        read(path)
    except ValueError:
        refused(lambda: read(path), name)


def test_long_texts_come_in_pieces_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.data.reading.CHUNK", 100)
    text = "\ufeff" + POEM * 40 + "x" * 500 + "\r\n" * 3
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    parts = list(parts_of(tmp_path / "a.txt", "a", "text", None))
    assert len(parts) > 20
    assert "".join(part.text for part in parts) == text[1:].replace("\r\n", "\n")
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    (tmp_path / "a.txt").write_bytes(b"word " * 100 + b"\xff")
    refused(lambda: read(tmp_path / "a.txt"), "byte 500")


def test_a_text_without_gaps_is_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.data import reading

    searched = []
    last_gap = reading._last_gap
    monkeypatch.setattr(reading, "CHUNK", 100)
    monkeypatch.setattr(reading, "_last_gap", lambda text: searched.append(len(text)) or last_gap(text))
    for before in range(195, 205):  # a gap on either side of the end of a piece, and on it
        text = "x" * before + " " + "y" * 5000
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        parts = [part.text for part in parts_of(tmp_path / "a.txt", "a", "text", None)]
        assert parts == [text[:before], text[before:]]
    assert sum(searched) < 10 * 1.1 * 5200


def test_a_vocabulary_is_learnt_from_as_much_text_however_it_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.data.planning.LEARNT", 20_000)
    rows = [{"text": f"Paragraph {i} has a few words."} for i in range(2000)]
    learnt = []
    for name in ("a.jsonl", "a.jsonl.xz"):
        compressed(tmp_path / name, lines(rows))
        plan = Plan.of(str(tmp_path / name), tokenizer="bpe:300")
        sides = Sides.of(plan.sources, plan.validation)
        learnt.append("".join(learnt_from(sides, plan, lambda number, share: None)))
    assert learnt[0] == learnt[1]
    assert len(learnt[0]) == pytest.approx(20_000, rel=0.2)


@pytest.mark.parametrize("kind", ["bytes", "bpe:300", "sentencepiece", "words"])
def test_tokens_do_not_depend_on_how_a_text_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from test_data_tokenizer import llama_like

    tokenizer = kind
    if kind in ("sentencepiece", "words"):
        rules = json.loads(llama_like().to_str())
        if kind == "words":  # one whose texts may not be cut
            rules["model"]["vocab"]["a▁"] = 275
            rules["model"]["merges"].append(["a", "▁"])
        tokenizer = str(tmp_path / "tokenizer.json")
        Path(tokenizer).write_text(json.dumps(rules), encoding="utf-8")
    source = library(tmp_path / "texts", [f"d{i}" for i in range(5)])
    (tmp_path / "texts" / "z.txt").write_text("the cat a " * 200 + POEM * 20, encoding="utf-8")
    whole = prepare(source, tmp_path / "whole", tokenizer=tokenizer, validation=0.3)
    for name, value in {"reading.CHUNK": 64, "writing.BATCH": 99, "tokenizer.PIECE": 7}.items():
        monkeypatch.setattr(f"unmask.data.{name}", value)
    parts = prepare(source, tmp_path / "parts", tokenizer=str(whole), validation=0.3)
    texts = {document.name: document.text for document in documents(source)}
    for split in ("train", "validation"):
        left, right = load_split(whole, split), load_split(parts, split)
        assert np.array_equal(left.tokens, right.tokens)
        for name, start, length in zip(left.names, left.starts, left.lengths, strict=True):
            ids = left.tokens[start : start + length]
            assert ids.tolist() == [*Tokenizer.load(whole).encode(texts[name]), Tokenizer.load(whole).end]


def test_a_long_document_is_cut_in_two_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.data.reading.CHUNK", 200)
    monkeypatch.setattr("unmask.data.sides.WINDOW", 300)
    text = "".join(f"Paragraph {i} has a few words.\n\n" for i in range(400))
    for name in ("a.txt", "a.txt.gz"):
        compressed(tmp_path / name, text.encode())
        out = prepare(str(tmp_path / name), tmp_path / f"out{name}", tokenizer="bytes", validation=0.1)
        sides = [load_split(out, split) for split in ("train", "validation")]
        first, last = (bytes(side.tokens[:-1].astype(np.uint8)).decode() for side in sides)
        assert first + last == text
        assert first.endswith("\n\n")
        assert abs(len(last) / len(text) - 0.1) < 0.02
        assert [len(side.names) for side in sides] == [1, 1]


def test_records_keep_their_side_wherever_they_are_and_copies_fall_together(tmp_path: Path) -> None:
    rows = [{"text": f"record {i}"} for i in range(300)]
    held = []
    for name, chosen in (("few", rows[::3]), ("many", [*rows[::-1], *rows[:50]])):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(chosen))
        out = prepare(str(tmp_path / f"{name}.jsonl"), tmp_path / name, tokenizer="bytes", validation=0.2)
        split, tokenizer = load_split(out, "validation"), Tokenizer.load(out)
        spans = zip(split.starts, split.lengths, strict=True)
        held.append([tokenizer.decode(split.tokens[start : start + length]) for start, length in spans])
    assert set(held[0]) == set(held[1]) & {row["text"] for row in rows[::3]}
    assert len(held[1]) > len(set(held[1])) > 30


def test_several_sources_keep_their_order_counts_and_weights(tmp_path: Path) -> None:
    one, two = library(tmp_path / "one", [f"d{i}" for i in range(20)]), tmp_path / "two.jsonl"
    two.write_bytes(lines([{"text": f"record {i}"} for i in range(40)]))
    out = prepare([one, str(two)], tmp_path / "out", tokenizer="characters", weights=(3, 1), licence_note="CC-BY")
    train, held = (load_split(out, split) for split in ("train", "validation"))
    manifest = load_manifest(out)
    assert train.weights == (3.0, 1.0)
    assert manifest["licence"] == "CC-BY"
    assert [name for name, _, _ in train.sources] == [one, str(two)]
    assert [train.sources[i][1] + held.sources[i][1] for i in range(2)] == [20, 40]
    assert train.source_tokens.sum() == len(train.tokens)
    first = train.sources[0][1]
    assert [name.startswith("two") for name in train.names] == [i >= first for i in range(len(train.names))]
    same = {"source": [one, str(two)], "tokenizer": "characters", "licence_note": "CC-BY"}
    refused(lambda: prepare(out=out, weights=(1, 1), **same), "weights [3.0, 1.0]", "delete")
    for weights in ((1,), (1, 0), (1, float("nan"))):
        refused(lambda weights=weights: Plan.of([one, str(two)], weights=weights), "weights", "positive")
    refused(lambda: Plan.of([one, one]), "each once")


def test_detokenisers_apply_to_lines_of_texts_and_to_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.data.reading.CHUNK", 32)
    rows = [" \n", " = Title = \n", ' He said , " yes @-@ no " . \n'] * 20
    (tmp_path / "wiki.txt").write_text("".join(rows), encoding="utf-8")
    found = source_of(str(tmp_path / "wiki.txt"), rule=detokenise.RULES["wikitext"]).read()
    assert "".join(part.text for part in found) == "".join(map(detokenise.wikitext, rows))
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": " “ a ” "}]))
    (part,) = source_of(str(tmp_path / "a.jsonl"), rule=detokenise.RULES["lambada"]).read()
    assert part.text == '\n" a "'
    refused(lambda: Plan.of(str(tmp_path), detokenise="none"), "wikitext")


def test_an_estimate_is_near_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_data_tokenizer import llama_like

    source = library(tmp_path / "texts", [f"d{i}" for i in range(60)])
    found = estimate(Plan.of(source, tokenizer="bytes"))
    made = prepare(source, tmp_path / "out", tokenizer="bytes")
    tokens = sum(len(load_split(made, split).tokens) for split in ("train", "validation"))
    assert found.files == 60
    assert found.tokens == pytest.approx(tokens, rel=0.05)
    assert found.disk == 2 * found.tokens
    (tmp_path / "long.txt").write_text(POEM * 50, encoding="utf-8")
    rules = {**json.loads(llama_like().to_str()), "pre_tokenizer": {"type": "BertPreTokenizer"}}  # it may not be cut
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    monkeypatch.setattr("unmask.data.reading.CHUNK", 500)
    monkeypatch.setattr("unmask.data.planning.SAMPLE", 1000)
    found = estimate(Plan.of(str(tmp_path / "long.txt"), tokenizer=str(tmp_path / "tokenizer.json")))
    assert found.tokens == pytest.approx(len(Tokenizer.load(tmp_path).encode(POEM * 50)), rel=0.1)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(20):
            archive.writestr(f"{i}.txt", POEM * 5)
    found = estimate(Plan.of(str(tmp_path / "x.zip"), tokenizer="bytes"))
    assert found.tokens == pytest.approx(100 * len(POEM.encode()), rel=0.1)
    before = set(os.listdir(tmp_path))
    main(["prepare", "--source", source, "--out", str(tmp_path / "dry"), "--tokenizer", "bpe:300", "--dry-run"])
    assert set(os.listdir(tmp_path)) == before


def test_the_command_takes_sources_with_weights_and_refuses_in_one_line(tmp_path: Path, capsys) -> None:
    one, two = library(tmp_path / "a", ["x", "y", "z"]), library(tmp_path / "b", ["u", "v", "w"])
    out = str(tmp_path / "out")
    main(["prepare", "--source", one, two, "--weights", "0.7", "0.3", "--out", out, "--tokenizer", "bytes"])
    assert load_split(out, "train").weights == (0.7, 0.3)
    for words in (["--weights", "1"], ["--validation", "2"], ["--tokenizer", "bpe:1"], ["--field", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(["prepare", "--source", one, two, "--out", out, *words])
        assert caught.value.code == 2
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "x"}\n{"text"\n')
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["prepare", "--source", str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "new")])
    assert "line 2 is not JSON" in capsys.readouterr().err
    assert not [name for name in os.listdir(tmp_path) if "new" in name]
