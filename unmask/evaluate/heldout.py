"""Texts to measure a model on: a benchmark under a protocol, a prepared folder's validation split, any text."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from unmask.checkpoint import Model
from unmask.data import Split, Tokenizer, documents, load_manifest, load_split
from unmask.data.splits import MANIFEST
from unmask.evaluate.corpora import corpus_of, rows_of
from unmask.evaluate.protocols import PACKED, PROTOCOLS, Stream, Windows, cut, decoded


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What is scored: windows of a text, and which text it is."""

    windows: Windows
    corpus: str
    split: str
    digest: str
    tokenizer: str
    train: Split | None = None
    """What n-gram yardsticks are fitted to, where there is such a thing."""


def benchmark(
    model: Model, name: str, protocol: str, *, local: Path | str | None = None, length: int | None = None, **options
) -> HeldOut:
    """A benchmark's corpus, detokenised, under a protocol by name; `options` are those of `cut`.

    The length is by default that of the model's training, and at most 1024.

    Raises ValueError where the protocol does not score it or its texts cannot be had.
    """
    rules = next((rules for rules in PROTOCOLS if rules.name == protocol), None)
    if rules is None:
        raise ValueError(f"no protocol {protocol!r}: choose one of {', '.join(rules.name for rules in PROTOCOLS)}")
    corpus, split = corpus_of(name, protocol)
    rows = rows_of(corpus, split, None if local is None else Path(local))
    length = min(1024, model.length or 1024) if length is None else length
    stream = Stream.of([corpus.detokenise(row) for row in rows], model.tokenizer, rows, corpus.documents(rows))
    windows = cut(stream, rules, model.tokenizer, length=length, causal=model.causal, **options)
    return HeldOut(windows, name, split, stream.digest, identity(model.tokenizer))


def running_text(
    model: Model, source: Path | str, *, field: str = "text", length: int | None = None, **options
) -> HeldOut:
    """A prepared folder's validation split, a text file, or a folder of them; `options` are those of `cut`.

    `field` is the one of a row that holds text, where files have rows.

    The length is by default that of the model's training, or 64 where its config does not say.

    Raises ValueError where there is none, or the folder was prepared with another tokenizer than the model's.
    """
    tokenizer, source = model.tokenizer, Path(source)
    options["length"] = (model.length or 64) if length is None else length
    if (source / MANIFEST).is_file():
        if Tokenizer.load(source).inner.to_str() != tokenizer.inner.to_str():
            remedy = "prepare it with the model's, by unmask prepare --tokenizer CHECKPOINT, or give the text itself"
            raise ValueError(f"{source}: prepared with another tokenizer than the model was trained with: {remedy}")
        return prepared(source, tokenizer, **options)
    texts = texts_of(source, field)
    stream = Stream.of(texts, tokenizer, texts, range(len(texts)))
    windows = cut(stream, PACKED, tokenizer, **options)
    return HeldOut(windows, source.name, "all", stream.digest, identity(tokenizer))


def prepared(folder: Path, tokenizer: Tokenizer, *, corpus: str | None = None, **options) -> HeldOut:
    """The validation split of a prepared folder, which has a train split for yardsticks."""
    stream = Stream.of_split(load_split(folder, "validation"), tokenizer)
    windows = cut(stream, PACKED, tokenizer, **options)
    name = corpus or str(load_manifest(folder)["source"])
    return HeldOut(windows, name, "validation", stream.digest, identity(tokenizer), load_split(folder, "train"))


def texts_of(source: Path, field: str = "text") -> list[str]:
    """The documents of a prepared folder's validation split, a text file, or a folder of them."""
    if (source / MANIFEST).is_file():
        return decoded(load_split(source, "validation"), Tokenizer.load(source))
    return [document.text for document in documents(str(source), field)]


def identity(tokenizer: Tokenizer) -> str:
    """Which tokenizer: its size and a digest of its rules. Perplexities per token of two tokenizers do not compare."""
    rules = hashlib.blake2b(tokenizer.inner.to_str().encode(), digest_size=4).hexdigest()
    return f"{tokenizer.vocab:,} tokens, {rules}"
