"""Truths of tokenizers: text survives, special tokens are out of its reach, and cuts do not show."""

import json
import os
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import POEM, refused
from tokenizers import AddedToken, decoders, models, normalizers

from unmask.data import (
    Tokenizer,
    byte_tokenizer,
    character_tokenizer,
    train_bpe,
)
from unmask.data.tokenizer import cut

quick = settings(max_examples=60)
SPECIAL = ["<|begin|>", "<|end|>", "<|endoftext|>", "<s>", "</s>", "<unk>"]
words = st.one_of(st.text(max_size=20), st.sampled_from([*SPECIAL, " ", "\n\n\n", "   ", "the cat"]))
texts = st.lists(words).map("".join)


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
        assert len(streamed) > 1


def test_texts_are_not_cut_where_merges_go_over_words(tmp_path: Path) -> None:
    inner = llama_like()
    rules = json.loads(inner.to_str())
    rules["model"]["vocab"]["a▁"] = 275
    rules["model"]["merges"].append(["a", "▁"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.rest is None
    assert list(tokenizer.stream("a a " * 50_000)) == [tokenizer.encode("a a " * 50_000)]


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
    refused(lambda: Tokenizer.load(tmp_path / "spm"), "tokenizer.model", "no sentencepiece model", "restore")
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    refused(lambda: Tokenizer.load(tmp_path / "gpt"), "no tokenizer", "merges.txt")
    (tmp_path / "gpt" / "merges.txt").write_text("b c\n", encoding="utf-8")
    refused(lambda: Tokenizer.load(tmp_path / "gpt"), "vocab.json", "restore")


def test_a_tokenizer_that_leaves_letters_out_is_refused(tmp_path: Path) -> None:
    """Planted fault: WordLevel raised the library's bare Exception, BPE dropped what it does not know in silence."""
    for unknown in ({}, {"<unk>": 0}):
        named = dict.fromkeys(["unk_token"], "<unk>") if unknown else {}
        words = {name: id for id, name in enumerate([*unknown, "a", "b", "ab"])}
        for model in (models.BPE(vocab=words, merges=[("a", "b")], **named), models.WordLevel(words, **named)):
            inner = tokenizers.Tokenizer(model)
            inner.add_special_tokens(["<s>", "</s>"])
            inner.save(str(tmp_path / "tokenizer.json"))
            if unknown:
                assert Tokenizer.load(tmp_path).encode("ž") == [0]
            else:
                refused(lambda: Tokenizer.load(tmp_path), "tokenizer.json", "no token for a letter", "choose another")


def test_what_has_no_text_and_what_is_no_text_is_refused() -> None:
    refused(lambda: BYTES.decode([1, BYTES.vocab]), "258", "mask")
    refused(lambda: BYTES.pieces([-1]), "-1")
    refused(lambda: BYTES.encode("half \ud83d"), "surrogate")
    refused(lambda: BYTES.encode_batch(["ok", "half \ud83d"]), "surrogate")
    refused(lambda: BYTES.encode(b"bytes"), "bytes")


def published(name: str) -> Path:
    path = Path(os.environ.get("UNMASK_DATA", ".")) / "tokenizers" / name
    if not path.is_file():
        pytest.skip(f"UNMASK_DATA does not point at the data, in which tokenizers/{name} is")
    return path


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.load(published("gpt2/tokenizer.json").parent)


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


def test_gpt2_from_vocabulary_and_merges_is_the_same(gpt2: Tokenizer, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(published(f"gpt2/{name}"), tmp_path)
    bare = Tokenizer.load(tmp_path)
    assert (bare.vocab, bare.begin, bare.end) == (gpt2.vocab, gpt2.begin, gpt2.end)
    text = "Hello world <|endoftext|>\n\n  don't   naïve 日本語 🐈 12345 " * 20
    assert bare.encode(text) == gpt2.encode(text)
    assert bare.decode(bare.encode(text)) == text


# --- characters ---------------------------------------------------------------------------------------------


@quick
@given(texts)
def test_characters_survive_one_token_each(text: str) -> None:
    tokenizer = character_tokenizer(text + "x")
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab == len(set(text + "x")) + 2
    assert tokenizer.inner.encode(text, add_special_tokens=False).ids == ids  # the table is the library's reading
    assert "".join(tokenizer.pieces(ids)) == text


def test_unknown_characters_are_refused_and_survive_no_round_trip_in_silence(tmp_path: Path) -> None:
    tokenizer = character_tokenizer("abc ")
    tokenizer.save(tmp_path)
    for one in (tokenizer, Tokenizer.load(tmp_path)):
        assert one.encode("cab a") == [3, 1, 2, 0, 1]
        refused(lambda one=one: one.encode("a dog"), "'d'", "bytes")
        refused(lambda one=one: one.encode("<|end|>"), "'<'")
    refused(lambda: character_tokenizer(""), "not empty")


# --- sentencepiece ------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def message(*fields: tuple[int, int | bytes | float]) -> bytes:
    """A protocol buffer of numbers, floats and bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def sentencepiece_file(path: Path, pieces: list[str], trainer: bytes = b"", rules: bytes = b"") -> Path:
    """A BPE model with Llama 2's special tokens and bytes; scores fall in the order of the pieces."""
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    rows = [message((1, name.encode()), (2, 0.0), (3, kind)) for name, kind in special]
    rows += [message((1, piece.encode()), (2, float(-i))) for i, piece in enumerate(pieces)]
    trainer, rules = trainer or message((3, 2), (35, 1)), rules or message((1, b"identity"), (4, 0))
    path.write_bytes(message(*((1, row) for row in rows), (2, trainer), (3, rules)))
    return path


def test_a_sentencepiece_model_merges_by_score_and_the_leftmost_first(tmp_path: Path) -> None:
    pieces = ["ab", "bc", "abc", "▁ab", "aa", "▁", "a", "b", "c"]
    tokenizer = Tokenizer.load(sentencepiece_file(tmp_path / "x.model", pieces))
    vocab = {id: piece for piece, id in tokenizer.inner.get_vocab().items()}
    expected = {
        "abc": ["▁", "abc"],  # "ab" is better than "bc", and then "abc" better than "▁ab"
        "bbc": ["▁", "b", "bc"],
        "aaa": ["▁", "aa", "a"],
        " a": ["▁", "▁", "a"],
        "": [],
        "</s>": ["▁", *(f"<0x{byte:02X}>" for byte in b"</s>")],
        "a\nb": ["▁", "a", "<0x0A>", "b"],
    }
    for text, wanted in expected.items():
        assert [vocab[id] for id in tokenizer.encode(text)] == wanted
    assert (tokenizer.begin, tokenizer.end) == (1, 2)
    assert tokenizer.decode(tokenizer.encode("aa b🐈</s>")) == "aa b🐈</s>"


def test_sentencepiece_models_that_do_more_are_refused(tmp_path: Path) -> None:
    path, pieces = tmp_path / "x.model", ["▁", "a"]
    identity = message((4, 0))
    kinds = {
        "not BPE": (message((3, 1)), identity),
        "normalises": (message((3, 2)), message((2, b"charsmap"), (4, 0))),
        "suffixes": (message((3, 2), (24, 1)), identity),
    }
    for word, (trainer, rules) in kinds.items():
        refused(
            lambda trainer=trainer, rules=rules: Tokenizer.load(sentencepiece_file(path, pieces, trainer, rules)), word
        )
    whole = sentencepiece_file(path, pieces).read_bytes()
    path.write_bytes(message((1, message((1, b"user"), (3, 4)))) + whole)
    refused(lambda: Tokenizer.load(path), "symbols of its own")


@quick
@given(data=st.data())
def test_damaged_sentencepiece_models_are_refused_in_one_line(tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x.model"
    whole = bytearray(sentencepiece_file(path, ["▁", "a", "b", "ab"]).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        Tokenizer.load(path)
    except ValueError:
        refused(lambda: Tokenizer.load(path), "x.model")


@pytest.mark.parametrize("name", ["llama2", "mistral_v1"])
def test_published_sentencepiece_models_read_as_sentencepiece_does(name: str) -> None:
    """Random and hostile texts: special tokens spelt out, runs of spaces, repeated pieces, any character."""
    path = published(f"{name}/tokenizer.model")
    theirs = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path))
    ours, rng = Tokenizer.load(path), random.Random(0)
    assert (ours.vocab, ours.begin, ours.end) == (len(theirs), theirs.bos_id(), theirs.eos_id())
    pieces = [theirs.id_to_piece(i).replace("▁", " ") for i in range(259, len(theirs))]
    odd = [
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        " ",
        "\n",
        "\t",
        "▁",
        "▁▁",
        "\0",
        "🐈",
        "\ufeff",
        "\u0301",
        "\xa0",
        " " * 17,
    ]
    planes = [(32, 127), (0, 0x3000), (0x3000, 0xD800), (0xE000, 0x110000)]

    def character() -> str:
        return chr(rng.randrange(*rng.choice(planes)))

    kinds = [
        lambda: "".join(rng.choice(odd + pieces[:2000]) for _ in range(rng.randint(0, 8))),
        lambda: "".join(rng.choice("aab c  \n▁") for _ in range(rng.randint(0, 40))),
        lambda: "".join(character() for _ in range(rng.randint(0, 20))),
        lambda: rng.choice(pieces) * rng.randint(1, 6) + rng.choice(odd) + rng.choice(pieces) * 3,
    ]
    texts = [rng.choice(kinds)() for _ in range(4000)] + [" ".join(pieces), "".join(pieces)]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids)
        whole = [id for i, piece in enumerate(cut(text, 3)) for id in ours.arrays([piece], cut=i > 0)[0].tolist()]
        assert whole == ids
