"""What is asked of `prepare`, checked before anything is read or written, and what it would come to."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unmask.data.detokenise import RULES
from unmask.data.making import LARGEST, SMALLEST, byte_tokenizer, character_tokenizer, train_bpe
from unmask.data.sides import Sides
from unmask.data.sources import Source, digest_of, licence, source_of
from unmask.data.splits import FORMAT
from unmask.data.tokenizer import Tokenizer, cut
from unmask.data.writing import Sorted, tokenised
from unmask.hub import fetched_tokenizer

CHOICES = (
    '"bytes", "characters", "bpe:N" (N tokens, trained on the training documents), or a tokenizer.json, a '
    "sentencepiece .model, a folder with one of them or vocab.json and merges.txt, hf://owner/repository, or "
    '"builtin" (of the checkpoints that come with the package)'
)
LEARNT = 1 << 28  # bytes of training text that a vocabulary is learnt from, drawn from all where there is more
SAMPLE = 1 << 22  # characters that an estimate looks at

Make = Callable[[Callable[[], Iterator[str]]], Tokenizer]


@dataclass(frozen=True)
class Plan:
    """What is asked for, checked: nothing is read yet but the names of files. Raises ValueError for what cannot be."""

    sources: tuple[Source, ...]
    make: Make
    tokenizer: str
    validation: float
    weights: tuple[float, ...] | None
    field: str
    detokenise: str | None
    licence: str

    @classmethod
    def of(
        cls,
        source: str | Sequence[str],
        *,
        tokenizer: str = "bpe:4096",
        validation: float = 0.05,
        weights: Sequence[float] | None = None,
        field: str = "text",
        detokenise: str | None = None,
        licence_note: str | None = None,
    ) -> "Plan":
        """See `prepare`."""
        names = [source] if isinstance(source, str) else list(source)
        if not 0 < validation < 1:
            raise ValueError(f"a validation share of {validation} leaves one side empty: choose between 0 and 1")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"sources {', '.join(names)}: give at least one, and each once")
        if weights is not None and (len(weights) != len(names) or not all(0 < each < np.inf for each in weights)):
            raise ValueError(f"weights {list(weights)} of {len(names)} sources: give each a positive number, or none")
        if detokenise is not None and detokenise not in RULES:
            raise ValueError(f"no detokeniser {detokenise!r}: choose one of {', '.join(RULES)}")
        rule = None if detokenise is None else RULES[detokenise]
        make, spec = maker_of(tokenizer)
        found = tuple(source_of(name, field, rule) for name in names)
        shares = None if weights is None or len(names) == 1 else tuple(map(float, weights))
        return cls(found, make, spec, validation, shares, field, detokenise, licence(names, licence_note))

    @cached_property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(source.size for source in self.sources)

    def request(self, told: Callable[[int], None]) -> dict[str, object]:
        """What a prepared folder answers; its files are read once, to know them again."""
        digests = digest_of(self.sources, [self.field, self.detokenise], told)
        whole = hashlib.blake2b(repr((digests, self.weights)).encode(), digest_size=16).hexdigest()
        return {
            "format": FORMAT,
            "tokenizer": self.tokenizer,
            "validation": self.validation,
            "licence": self.licence,
            "field": self.field,
            "detokenise": self.detokenise,
            "weights": None if self.weights is None else list(self.weights),  # as JSON gives it back
            "source": whole,
            "sources": digests,
        }


@dataclass(frozen=True)
class Estimate:
    """What preparing would make, judged by the beginning of each source."""

    files: int
    bytes: int
    tokens: int
    vocab: int
    disk: int
    """Bytes of the prepared folder."""
    seconds: float


def estimate(plan: Plan) -> Estimate:
    """Tokenise a sample, write nothing. A "bpe:N" vocabulary is learnt from the sample."""
    texts: list[str] = []
    parts: list[Sorted] = []
    share = 0.0
    for number, source in enumerate(plan.sources):
        room, read = SAMPLE // len(plan.sources), 0.0
        for part in source.read():
            parts.append((False, number, part))
            texts.append(part.text)
            room, read = room - len(part.text), part.read
            if room <= 0:
                break
        share += read * source.size / max(1, plan.size)
    tokenizer = plan.make(lambda: iter(texts))
    start = time.perf_counter()
    tokens = sum(len(piece.ids) for piece in tokenised(parts, tokenizer, dtype_of(tokenizer)))
    seconds = time.perf_counter() - start
    total = round(tokens / max(share, 1e-9))
    files = sum(len(source.files) for source in plan.sources)
    disk = total * dtype_of(tokenizer).itemsize
    return Estimate(files, plan.size, total, tokenizer.vocab, disk, seconds / max(share, 1e-9))


def learnt_from(sides: Sides, plan: Plan, told: Callable[[int, float], None]) -> Iterator[str]:
    """The texts that a vocabulary is learnt from: training documents, or pieces of them drawn by a hash.

    Characters are looked for in all documents, or the held-out ones could not be read.
    """
    every = plan.tokenizer == "characters"

    def texts() -> Iterator[str]:
        for held_out, number, part in sides.parts():
            told(number, part.read)
            if every or not held_out:
                yield part.text

    # the files' sizes do not say it: they may be compressed
    share = 1.0 if every else LEARNT / max(1, sum(len(text.encode()) for text in texts()))
    for text in texts():
        if share >= 1:
            yield text
            continue
        for piece in cut(text):
            digest = hashlib.blake2b(piece.encode(), digest_size=8).digest()
            if int.from_bytes(digest, "big") < share * 2**64:
                yield piece


def maker_of(spec: str) -> tuple[Make, str]:
    """How to make the tokenizer, given a way to read the training texts, and what names it in a request.

    Raises ValueError for a name that says none.
    """
    if spec == "bytes":
        return lambda texts: byte_tokenizer(), spec
    if spec == "characters":
        return lambda texts: character_tokenizer(set().union(*map(set, texts()))), spec
    if spec.startswith("bpe:"):
        size = spec.removeprefix("bpe:")
        if not re.fullmatch("[0-9]{1,9}", size) or not SMALLEST <= int(size) <= LARGEST:
            raise ValueError(f"tokenizer {spec!r}: N must be a number from {SMALLEST} to {LARGEST:,}")
        return lambda texts: train_bpe(texts(), int(size)), f"bpe:{int(size)}"
    path = fetched_tokenizer(spec)
    if not path.exists():
        raise ValueError(f"no tokenizer {spec!r}: choose {CHOICES}")
    loaded = Tokenizer.load(path)
    return lambda texts: loaded, f"file:{digest_of_bytes(loaded.inner.to_str().encode())}"


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab < 2**16 else "<u4")


def digest_of_bytes(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
