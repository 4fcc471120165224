"""Text to token ids and back: a thin face over Hugging Face's `tokenizers`."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsInt

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, normalizers, pre_tokenizers

from unmask.data.sentencepiece import SPACE, WORDS, read_sentencepiece
from unmask.files import atomic

BEGIN, END = "<|begin|>", "<|end|>"
# (begin, end) by name, the first pair whose end exists: ours, Llama 3, GPT-2 and LLaDA, Llama 2 and Mistral.
NAMES = (
    (BEGIN, END),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<|startoftext|>", "<|endoftext|>"),
    ("<s>", "</s>"),
)
FILE, MODEL, VOCAB, MERGES = "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"
UNFINISHED = "\ufffd"  # what decoders write for the bytes of a character that is not complete
# GPT-2's pattern starts a word at a space or line end that stands alone, and sentencepiece at a space, whatever comes
# before it: a text cut there is read as it was whole.
GAP = re.compile(r"(?<=[^\s▁])[ \n](?=\S)")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # sentencepiece's tokens of single bytes
STRANGER = "\U00012031"  # a cuneiform sign: four bytes, in hardly any vocabulary
PIECE, PIECES = 2**16, 16  # characters, and pieces at once: ~90 MB of the library's records


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """V real tokens 0..V-1, begin and end among them; `begin` is `end` where there is no begin token.

    `letters` spells the special tokens that the model itself would build out of plain text.
    """

    inner: tokenizers.Tokenizer = field(repr=False)
    vocab: int
    begin: int
    end: int
    letters: dict[int, list[int]] = field(repr=False)
    rest: tokenizers.Tokenizer | None = field(repr=False, default=None)
    """What reads the rest of a text that was cut at a GAP as it is read in the whole; None where nothing does."""
    table: Int[np.ndarray, " A"] | None = field(repr=False, default=None)
    """The id of each byte, or of each character (-1: none), where text is no more than these."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special token is added, and text that spells one stays text.

        Raises ValueError for a character that a vocabulary of characters does not have.
        """
        if self.table is not None:
            return self._looked_up(text).tolist()
        return self._plain(self.inner.encode(_checked(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, on all cores."""
        return [ids.tolist() for ids in self.arrays(texts)]

    def arrays(self, texts: Sequence[str], cut: bool = False) -> list[Int[np.ndarray, " n"]]:
        """`encode` of each, on all cores; if `cut`, of what goes on with a text that was cut at a GAP."""
        if self.table is not None:
            return [self._looked_up(text) for text in texts]
        inner = self.rest if cut else self.inner
        assert inner is not None
        encodings = inner.encode_batch_fast([_checked(text) for text in texts], add_special_tokens=False)
        return [np.array(self._plain(encoding.ids), dtype=np.int64) for encoding in encodings]

    def stream(self, text: str) -> Iterator[list[int]]:
        """encode(text) in pieces: for texts of any length, on all cores. Texts that may not be cut are read whole."""
        first, *others = [text] if self.rest is None else cut(text)
        yield self.encode(first)
        for i in range(0, len(others), PIECES):
            yield from (ids.tolist() for ids in self.arrays(others[i : i + PIECES], cut=True))

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Text of the ids; special tokens are skipped. Raises ValueError for an id that is no real token."""
        return self.inner.decode(self._known(ids), skip_special_tokens=True)

    def pieces(self, ids: Iterable[SupportsInt]) -> list[str]:
        """The text that each token adds: joined, they are decode(ids).

        A character of several tokens stands at its last one; those before it, and special tokens, add ''. One
        exception: bytes that are no UTF-8 in a sentencepiece vocabulary, whose decoder spoils all their run.
        """
        known, pieces, before = self._known(ids), [], ""
        start = done = 0  # known[start:done], with text `before`, was shown last: decoders look back so far
        for i in range(len(known)):
            now = self.inner.decode(known[start : i + 1], skip_special_tokens=True)
            if i + 1 < len(known) and (now == before or now.endswith(UNFINISHED)):
                pieces.append("")
                continue
            pieces.append(now[len(before) :])
            start, done = done, i + 1
            before = self.inner.decode(known[start:done], skip_special_tokens=True)
        return pieces

    def spellings(self) -> list[bytes | None]:
        """The bytes of each token, None for special ones and ids without a token: joined, they are decode's text.

        Sentencepiece decoders drop a space at the very beginning of a text, see `drops_first_space`. Raises
        ValueError for a tokenizer whose tokens are not pieces of the text itself, such as WordPiece.
        """
        spell = _spelling(self.inner)
        special = {id for id, token in self.inner.get_added_tokens_decoder().items() if token.special}
        spelt: list[bytes | None] = [None] * self.vocab
        for token, id in self.inner.get_vocab(with_added_tokens=True).items():
            spelt[id] = None if id in special else spell(token)
        return spelt

    def drops_first_space(self) -> bool:
        """Whether a space at the very beginning of a text is lost in decoding."""
        spaced = next((id for id, piece in enumerate(self.spellings()) if piece and piece.startswith(b" ")), None)
        return spaced is not None and not self.decode([spaced]).startswith(" ")

    def save(self, path: Path | str) -> None:
        """Write tokenizer.json, whole or not at all, to `path` (a file, or a folder that exists)."""
        path = Path(path)
        with atomic(path / FILE if path.is_dir() else path) as file:
            file.write(self.inner.to_str(pretty=True))

    @staticmethod
    def load(path: Path | str) -> "Tokenizer":
        """Read a tokenizer.json, a sentencepiece .model, or a folder with one of them or GPT-2's vocab.json and
        merges.txt. Raises ValueError where there is none to use.
        """
        path = _file(Path(path))
        if not path.is_file():
            remedy = f"give a {FILE}, a sentencepiece .model or a folder with one of them or {VOCAB} and {MERGES}"
            raise ValueError(f"no tokenizer at {path}: {remedy}")
        if path.suffix == ".model":
            return wrap(read_sentencepiece(path), str(path))
        try:
            if path.name == VOCAB:
                inner = as_bytes(tokenizers.Tokenizer(models.BPE.from_file(str(path), str(path.with_name(MERGES)))))
            else:
                inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            what = "vocabulary with merges" if path.name == VOCAB else FILE
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is no Hugging Face {what} ({reason}): restore it") from None
        return wrap(inner, str(path))

    def _looked_up(self, text: str) -> Int[np.ndarray, " n"]:
        """`encode` by table."""
        assert self.table is not None
        of_bytes = len(self.table) == 256
        data = _checked(text).encode("utf-8" if of_bytes else "utf-32-le")
        ids = self.table[np.frombuffer(data, dtype=np.uint8 if of_bytes else "<u4")]
        if len(ids) and ids.min() < 0:
            stranger = text[int((ids < 0).argmax())]
            raise ValueError(f"{stranger!r} is no character of this vocabulary: leave it out, or prepare with bytes")
        return ids

    def _plain(self, ids: list[int]) -> list[int]:
        if self.letters and not self.letters.keys().isdisjoint(ids):
            return [letter for id in ids for letter in self.letters.get(id, (id,))]
        return ids

    def _known(self, ids: Iterable[SupportsInt]) -> list[int]:
        """The library drops ids it does not know in silence: a mask left in a sample would vanish."""
        known = [int(id) for id in ids]
        for id in known:
            if not 0 <= id < self.vocab:
                what = "the mask, not yet written" if id == self.vocab else "no token"
                raise ValueError(f"id {id} is {what}: only ids 0 to {self.vocab - 1} have a text")
        return known


def cut(text: str, size: int = PIECE) -> Iterator[str]:
    """Pieces of about `size` characters, cut at gaps."""
    start = 0
    while len(text) - start > size and (gap := GAP.search(text, start + size)):
        yield text[start : gap.start()]
        start = gap.start()
    yield text[start:]


def as_bytes(inner: tokenizers.Tokenizer, *, use_regex: bool = True) -> tokenizers.Tokenizer:
    """Text as GPT-2 reads it: bytes written as letters, in its words or (without the regex) in one piece."""
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    inner.decoder = decoders.ByteLevel()
    return inner


def wrap(inner: tokenizers.Tokenizer, where: str) -> Tokenizer:
    """A Tokenizer: find begin and end, and make special tokens unreachable from text."""
    pair = next((pair for pair in NAMES if inner.token_to_id(pair[1]) is not None), None)
    if pair is None:
        wanted = ", ".join(end for _, end in NAMES)
        raise ValueError(f"{where} has no end token ({wanted}): add one of them as a special token")
    # GPT-2's file names its end token in the vocabulary only; a token already there keeps its id.
    inner.add_special_tokens([name for name in pair if inner.token_to_id(name) is not None])
    inner.no_truncation()  # published files come with both, set for some other use
    inner.no_padding()
    inner.encode_special_tokens = True  # what spells a special token is text; the file does not keep this
    ids = inner.get_vocab(with_added_tokens=True)
    end, rules = ids[pair[1]], json.loads(inner.to_str())
    table = _table(rules)
    if table is None and not _knows(inner, STRANGER):
        what = "has no token for a letter that it does not know, and would leave it out"
        raise ValueError(f"the tokenizer {where} {what}: give it an unknown token or byte_fallback, or choose another")
    return Tokenizer(
        inner,
        max(ids.values()) + 1,
        ids.get(pair[0], end),
        end,
        _letters(inner, where),
        _rest(inner, rules),
        table,
    )


def _knows(inner: tokenizers.Tokenizer, letter: str) -> bool:
    """Whether a letter has tokens: its own, those of its bytes, or the unknown one."""
    try:
        return bool(inner.encode(letter, add_special_tokens=False).ids)
    except Exception:  # the library's own, of a model whose unknown token is not in its vocabulary
        return False


def _letters(inner: tokenizers.Tokenizer, where: str) -> dict[int, list[int]]:
    """The tokens of its letters, for each special token that the model itself builds out of plain text.

    Vocabularies converted from sentencepiece can hold merges that end in `</s>`.
    """
    letters, ids = {}, inner.get_vocab()
    for id, token in inner.get_added_tokens_decoder().items():
        if token.special and id in inner.encode(token.content, add_special_tokens=False).ids:
            if not ids.keys() >= set(token.content):
                what = f"reads {token.content!r} in a text as its special token and cannot spell it"
                raise ValueError(f"the tokenizer {where} {what}: choose another one")
            letters[id] = [ids[letter] for letter in token.content]
    return letters


def _rest(inner: tokenizers.Tokenizer, rules: dict) -> tokenizers.Tokenizer | None:
    """See `Tokenizer.rest`.

    GPT-2's words and bare bytes begin anew at a gap, characters anywhere. Sentencepiece puts a space before a text,
    but not before the rest of one, and no merge goes over a gap if no piece of the vocabulary does.
    """
    words, model = rules["pre_tokenizer"] or {}, rules["model"]
    if not all(token["special"] for token in rules["added_tokens"]):
        return None
    if words.get("type") == "ByteLevel" and not rules["normalizer"] and not words["add_prefix_space"]:
        return inner if words["use_regex"] or not model.get("merges", True) else None
    steps = (rules["normalizer"] or {}).get("normalizers", [])
    kinds = [(step["type"], step.get("prepend"), step.get("content")) for step in steps]
    if kinds[-1:] != [("Replace", None, SPACE)] or kinds[:-1] not in ([], [("Prepend", SPACE, None)]):
        return None
    pieces = [piece for piece in inner.get_vocab(with_added_tokens=False) if len(piece) > 1]
    apart = not any("\n" in piece or SPACE in piece.lstrip(SPACE) for piece in pieces)
    if model["type"] != "BPE" or not apart or words.get("pattern", {"Regex": WORDS}) != {"Regex": WORDS}:
        return None
    rest = tokenizers.Tokenizer.from_str(inner.to_str())
    rest.normalizer = normalizers.Replace(" ", SPACE)
    rest.encode_special_tokens = True
    return rest


def _table(rules: dict) -> Int[np.ndarray, " A"] | None:
    """See `Tokenizer.table`."""
    model, words = rules["model"], rules["pre_tokenizer"]
    rewrites = rules["normalizer"] or not all(token["special"] for token in rules["added_tokens"])
    if model["type"] != "BPE" or model["merges"] or model.get("byte_fallback") or model.get("unk_token") or rewrites:
        return None
    vocab = model["vocab"]
    if words is None:
        table = np.full(sys.maxunicode + 1, -1, dtype=np.int64)
        for letter, id in vocab.items():
            if len(letter) == 1:
                table[ord(letter)] = id
        return table
    letters, bare = byte_letters(), words["type"] == "ByteLevel" and not words["add_prefix_space"]
    return np.array([vocab[letter] for letter in letters]) if bare and vocab.keys() >= set(letters) else None


def _spelling(inner: tokenizers.Tokenizer) -> Callable[[str], bytes]:
    """How a token of the vocabulary is turned into bytes, by the decoder's kind."""
    decoder = json.loads(inner.to_str())["decoder"] or {}
    parts = decoder.get("decoders", [decoder])
    if any(part.get("type") == "ByteLevel" for part in parts):
        byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
        return lambda token: bytes(byte_of[c] for c in token) if byte_of.keys() >= set(token) else token.encode()
    if any(SPACE in (part.get("replacement"), part.get("pattern", {}).get("String")) for part in parts):
        return lambda token: (
            bytes([int(token[3:5], 16)]) if BYTE.fullmatch(token) else token.replace(SPACE, " ").encode()
        )
    kind = decoder.get("type", "no")
    raise ValueError(
        f"this tokenizer ({kind} decoder) has no bytes for each token: use a byte-level or sentencepiece one"
    )


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the rest are 256, 257, … in turn."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


def _file(path: Path) -> Path:
    """The file to read of a folder: the first kind that is there."""
    if not path.is_dir():
        return path
    kinds = ((FILE, FILE), (VOCAB, MERGES), (MODEL, MODEL))
    return path / next((name for name, other in kinds if (path / name).is_file() and (path / other).is_file()), FILE)


def _checked(text: str) -> str:
    """The library's versions treat half a surrogate pair differently: none of them may meet one."""
    if not isinstance(text, str):
        raise ValueError(f"expected a str to encode, found a {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        what = "a text holds half a surrogate pair, which UTF-8 cannot carry"
        raise ValueError(f"{what}: read its source as UTF-8") from None
    return text
