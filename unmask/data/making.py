"""Tokenizers that are made here: bytes, characters, byte-level BPE."""

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from unmask.data.tokenizer import BEGIN, END, Tokenizer, as_bytes, byte_letters, cut, wrap

SMALLEST = 258  # 256 bytes, begin, end
LARGEST = 10_000_000  # tokens, for which room is made at once: a typing error rather than a wish


def byte_tokenizer() -> Tokenizer:
    """One token a UTF-8 byte: ids 0..255 are the bytes, then begin (256) and end (257)."""
    vocab = {letter: byte for byte, letter in enumerate(byte_letters())}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.add_special_tokens([BEGIN, END])
    # No words: without merges they change nothing, and splitting would triple the time.
    return wrap(as_bytes(inner, use_regex=False), "bytes")


def character_tokenizer(characters: Iterable[str]) -> Tokenizer:
    """One token a character: those given, in the order of their code points, then begin and end.

    Any other character is refused when a text is encoded. Raises ValueError where there are none.
    """
    vocab = {letter: id for id, letter in enumerate(sorted(set(characters)))}
    if not vocab:
        raise ValueError("a vocabulary of characters needs a text: give one that is not empty")
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([BEGIN, END])
    return wrap(inner, "characters")


def train_bpe(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's words: begin and end, the 256 bytes, then up to vocab - 258 merges.

    The same texts give the same tokenizer. Merges stop when no pair is left that occurs twice, so `.vocab`
    can be smaller. Raises ValueError for a vocabulary without room for bytes and special tokens.
    """
    if vocab < SMALLEST:
        raise ValueError(f"a BPE vocabulary of {vocab} is too small: bytes, begin and end need {SMALLEST}")
    inner = as_bytes(tokenizers.Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((piece for text in texts for piece in cut(text)), trainer)
    return wrap(inner, f"bpe:{vocab}")
