"""Text to token ids and back: a thin face over Hugging Face's `tokenizers`."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsInt

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from unmask.files import atomic

BEGIN, END = "<|begin|>", "<|end|>"
# (begin, end) by name, the first pair whose end exists: ours, Llama 3, GPT-2 and LLaDA, Llama 2 and Mistral.
NAMES = (
    (BEGIN, END),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<|startoftext|>", "<|endoftext|>"),
    ("<s>", "</s>"),
)
FILE = "tokenizer.json"
SMALLEST = 258  # 256 bytes, begin, end
UNFINISHED = "\ufffd"  # what decoders write for the bytes of a character that is not complete
# GPT-2's pattern starts a word at the last space or line end of a gap, whatever comes before it (its
# \s+(?!\S) takes the rest of the gap): a text cut there is read as it was whole.
GAP = re.compile(r"[ \n](?=\S)")
SPACE, BYTE = "▁", re.compile(r"<0x[0-9A-F]{2}>")  # sentencepiece's space, and its tokens of single bytes
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

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special token is added, and text that spells one stays text."""
        return self._plain(self.inner.encode(_checked(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, on all cores."""
        encodings = self.inner.encode_batch_fast([_checked(text) for text in texts], add_special_tokens=False)
        return [self._plain(encoding.ids) for encoding in encodings]

    def stream(self, text: str) -> Iterator[list[int]]:
        """encode(text) in pieces: for texts of any length, on all cores.

        Only a byte-level tokenizer without a prefix space can be cut exactly; others get the text whole.
        """
        pieces = list(cut(text)) if _byte_level(self.inner) else [text]
        for i in range(0, len(pieces), PIECES):
            yield from self.encode_batch(pieces[i : i + PIECES])

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
        with atomic(_file(Path(path))) as file:
            file.write(self.inner.to_str(pretty=True))

    @staticmethod
    def load(path: Path | str) -> "Tokenizer":
        """Read tokenizer.json, or the folder that holds it. Raises ValueError where there is none to use."""
        path = _file(Path(path))
        if not path.is_file():
            remedy = "give a tokenizer.json or a folder that holds one"
            if path.with_name("tokenizer.model").is_file():  # sentencepiece, as Llama 2 was released
                remedy = "convert tokenizer.model with transformers' AutoTokenizer and its save_pretrained"
            raise ValueError(f"no tokenizer at {path}: {remedy}")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is no Hugging Face tokenizer.json ({reason}): restore it") from None
        return _wrap(inner, str(path))

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


def byte_tokenizer() -> Tokenizer:
    """One token a UTF-8 byte: ids 0..255 are the bytes, then begin (256) and end (257)."""
    vocab = {letter: byte for byte, letter in enumerate(_byte_letters())}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.add_special_tokens([BEGIN, END])
    # No words: without merges they change nothing, and splitting would triple the time.
    return _wrap(_as_bytes(inner, use_regex=False), "bytes")


def train_bpe(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's words: begin and end, the 256 bytes, then up to vocab - 258 merges.

    The same texts give the same tokenizer. Merges stop when no pair is left that occurs twice, so `.vocab`
    can be smaller. Raises ValueError for a vocabulary without room for bytes and special tokens.
    """
    if vocab < SMALLEST:
        raise ValueError(f"a BPE vocabulary of {vocab} is too small: bytes, begin and end need {SMALLEST}")
    inner = _as_bytes(tokenizers.Tokenizer(models.BPE()), use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((piece for text in texts for piece in cut(text)), trainer)
    return _wrap(inner, f"bpe:{vocab}")


def cut(text: str, size: int = PIECE) -> Iterator[str]:
    """Pieces of about `size` characters that a byte-level tokenizer reads as it reads the whole."""
    start = 0
    while len(text) - start > size and (gap := GAP.search(text, start + size)):
        yield text[start : gap.start()]
        start = gap.start()
    yield text[start:]


def _wrap(inner: tokenizers.Tokenizer, where: str) -> Tokenizer:
    """Find begin and end, and make special tokens unreachable from text."""
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
    end = ids[pair[1]]
    return Tokenizer(inner, max(ids.values()) + 1, ids.get(pair[0], end), end, _letters(inner, where))


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


def _as_bytes(inner: tokenizers.Tokenizer, *, use_regex: bool) -> tokenizers.Tokenizer:
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    inner.decoder = decoders.ByteLevel()
    return inner


def _byte_level(inner: tokenizers.Tokenizer) -> bool:
    """Whether texts may be cut at GAP: GPT-2's words or bare bytes, nothing that rewrites text first."""
    words = inner.pre_tokenizer
    if not isinstance(words, pre_tokenizers.ByteLevel) or words.add_prefix_space or inner.normalizer:
        return False
    only_bytes = inner.get_vocab_size(with_added_tokens=False) == 256
    only_special = all(token.special for token in inner.get_added_tokens_decoder().values())
    return only_special and (words.use_regex or only_bytes)


def _spelling(inner: tokenizers.Tokenizer) -> Callable[[str], bytes]:
    """How a token of the vocabulary is turned into bytes, by the decoder's kind."""
    decoder = json.loads(inner.to_str())["decoder"] or {}
    parts = decoder.get("decoders", [decoder])
    if any(part.get("type") == "ByteLevel" for part in parts):
        byte_of = {letter: byte for byte, letter in enumerate(_byte_letters())}
        return lambda token: bytes(byte_of[c] for c in token) if byte_of.keys() >= set(token) else token.encode()
    if any(SPACE in (part.get("replacement"), part.get("pattern", {}).get("String")) for part in parts):
        return lambda token: (
            bytes([int(token[3:5], 16)]) if BYTE.fullmatch(token) else token.replace(SPACE, " ").encode()
        )
    kind = decoder.get("type", "no")
    raise ValueError(
        f"this tokenizer ({kind} decoder) has no bytes for each token: use a byte-level or sentencepiece one"
    )


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the rest are 256, 257, … in turn."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


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
