"""A sentencepiece BPE model, as Llama 2's and Mistral's, read into the `tokenizers` library: no runtime of its own.

The file is one protocol buffer (google/sentencepiece, sentencepiece_model.proto). Its BPE merges the adjacent pair
whose joint piece has the highest score, the leftmost of equals, until none is left: with every way to split a piece as
a merge, ranked by the piece's score, that is what `tokenizers` does.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

SPACE = "▁"
WORDS = f"{SPACE}+[^{SPACE}]*"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of pieces; the others are refused
BPE = 2
VARINT, WIDE, BYTES, NARROW = 0, 1, 2, 5  # wire types


def read_sentencepiece(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a `.model` file. Raises ValueError for a damaged file, or one that does more than plain BPE."""
    try:
        pieces, trainer, rules = _model(path.read_bytes())
    except (AttributeError, IndexError, KeyError, TypeError, struct.error, UnicodeDecodeError, OverflowError):
        raise ValueError(f"{path} is no sentencepiece model: restore it") from None
    _plain(path, pieces, trainer, rules)
    vocab = {piece: id for id, (piece, _, _) in enumerate(pieces)}
    unknown = next((piece for piece, _, kind in pieces if kind == UNKNOWN), None)
    fallback = any(kind == BYTE for _, _, kind in pieces)
    words = {piece for piece, _, kind in pieces if kind == NORMAL}
    model = models.BPE(
        vocab=vocab, merges=_merges(pieces, words), unk_token=unknown, fuse_unk=True, byte_fallback=fallback
    )
    inner = tokenizers.Tokenizer(model)
    prefix = [normalizers.Prepend(SPACE)] if rules.get(3, 1) else []
    inner.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    if not any(SPACE in word.lstrip(SPACE) for word in words):
        # No piece reaches over the beginning of a word, so words can be read apart and remembered: 3 times faster.
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    inner.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    special = [piece for piece, _, kind in pieces if kind in (UNKNOWN, CONTROL)]
    inner.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    return inner


Piece = tuple[str, float, int]  # text, score, kind


def _model(data: bytes) -> tuple[list[Piece], dict, dict]:
    """(pieces, settings of the training, settings of the normaliser), settings by field number."""
    pieces, settings = [], {2: {}, 3: {}}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, NORMAL)))
        elif field in settings:
            settings[field] = dict(_fields(value))
    if len({piece for piece, _, _ in pieces}) < max(1, len(pieces)):
        raise KeyError("no pieces, or one twice")
    return pieces, settings[2], settings[3]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: an integer, or the bytes that hold it. Raises IndexError at an end
    that comes too soon.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at)
        else:
            size = {WIDE: 8, NARROW: 4}[kind]
        if at + size > len(data):
            raise IndexError("cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where the next thing begins): seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError("a number of more than 64 bits")


def _plain(path: Path, pieces: list[Piece], trainer: dict, rules: dict) -> None:
    """Refuse what would be read otherwise than sentencepiece does."""
    kinds = {kind for _, _, kind in pieces}
    reasons = {
        "its model is not BPE": trainer.get(3, 1) != BPE,
        "it normalises text": bool(rules.get(2)) or bool(rules.get(4, 1)) or not rules.get(5, 1),
        "it writes spaces as suffixes": bool(trainer.get(24, 0)),
        "it has symbols of its own": not kinds <= {NORMAL, UNKNOWN, CONTROL, BYTE},
    }
    for reason, holds in reasons.items():
        if holds:
            remedy = "convert it with transformers' AutoTokenizer and its save_pretrained, and give the tokenizer.json"
            raise ValueError(f"{path}: {reason}, which is not read here: {remedy}")


def _merges(pieces: list[Piece], words: set[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the highest score first."""
    ranked = sorted((-score, id, piece) for id, (piece, score, kind) in enumerate(pieces) if kind == NORMAL)
    return [
        (piece[:i], piece[i:])
        for _, _, piece in ranked
        for i in range(1, len(piece))
        if piece[:i] in words and piece[i:] in words
    ]
