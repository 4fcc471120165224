"""Fine-tuning sets on disk: examples as tokens with their answers marked, in a prepared folder like any other."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from unmask.data.pairs.encoding import ROOM, UNIFORMS, Encoded, encode
from unmask.data.pairs.layouts import Between, Blanks, Chat, Example, Plain, Reading
from unmask.data.pairs.rows import Malformed, rows_of
from unmask.data.pairs.templates import DEFAULT, Template, named_template, read_template, template_of
from unmask.data.planning import digest_of_bytes, maker_of
from unmask.data.splits import FORMAT, MANIFEST, PAIRS, SPLITS, load_manifest
from unmask.data.tokenizer import FILE, Tokenizer
from unmask.draws import MASK, keyed_uniforms
from unmask.files import Row, alone, atomic, read_json, vacant, writable, write_json
from unmask.hub import fetched_tokenizer

SHOWN = 5  # malformed rows named in an error
VALIDATION = 0.05  # of the rows, where no source is held out

Placed = tuple[str, Example]  # where its row stands
Read = tuple[list[Placed], list[Malformed], int]  # of a source: examples, what is none, rows


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, and the rows that were left out of it."""

    folder: Path
    rows: int
    malformed: list[Malformed] = field(default_factory=list)


def prepare_pairs(
    sources: str | Sequence[str],
    out: Path | str,
    *,
    tokenizer: str = "bpe:4096",
    validation: float = VALIDATION,
    held_out: str | None = None,
    reading: Reading | None = None,
    template: str | None = None,
    allowed: float = 0.01,
    progress: Callable[[int], None] | None = None,
) -> Prepared:
    """Turn rows of prompts and answers (see LAYOUTS) into the folder `out`, which appears whole or not at all.

    `tokenizer`: "bytes", "characters" (of both sides), "bpe:N" (trained on what is learnt from) or a tokenizer's path
    or hf:// address, as a pretrained run's tokenizer.json. Validation is a source of its own, `held_out`, or the share
    `validation` of the rows, by a hash of what is given. `template` is a file with a chat template; by default the
    tokenizer's own, else a plain one. Where `out` already answers the same request it is returned at once. Raises
    ValueError where it answers another or is damaged, and where more than the share `allowed` of the rows cannot be
    used, naming the first of them.
    """
    out, reading, path = Path(out), reading or Reading(), fetched_tokenizer(tokenizer)
    if not 0 <= allowed <= 1:
        raise ValueError(f"a share of {allowed:g} of the rows cannot be left out: choose 0 to 1")
    if not out.is_dir():
        writable(out / MANIFEST)
    make, spec = maker_of(str(path))
    names = [sources] if isinstance(sources, str) else list(sources)
    read = {"train": _examples(names, reading, progress)}
    if held_out is not None:
        read["validation"] = _examples([held_out], reading, progress)
    malformed = [bad for _, bads, _ in read.values() for bad in bads]
    rows = sum(rows for _, _, rows in read.values())
    _refuse(read, (), allowed)
    sides = {name: examples for name, (examples, _, _) in read.items()}
    if held_out is None:
        sides = _sides(sides["train"], validation)
    examples = {name: [example for _, example in side] for name, side in sides.items()}
    if reading.passes == 2 and not any(isinstance(each, Plain) and each.question for each in chain(*examples.values())):
        raise ValueError("--passes 2 does nothing for rows without a chain of thought and #### ANSWER: leave it out")
    given = template and read_template(template)
    request: Row = {
        "format": FORMAT,
        "source": _digest(repr(examples)),
        "tokenizer": spec.removeprefix("file:"),
        "template": given,
        "reading": asdict(reading),
    }
    if any(isinstance(each, Between | Blanks) for each in chain(*examples.values())):
        request["room"] = ROOM
    source = given or (template_of(path).source if path.exists() else DEFAULT)
    if (unfit := _answered(out, request, source)) is not None:
        _refuse(read, unfit, allowed)
        return Prepared(out, rows, malformed + unfit)
    with alone(out.with_name(f".{out.name}.lock"), f"{out}: already being prepared"):
        vacant(out)
        learnt = examples.values() if spec == "characters" else [examples["train"]]
        made = make(lambda: _texts(chain.from_iterable(learnt), Template(source)))
        chosen, encoded, unfit = named_template(source, made), {}, []
        for name, side in sides.items():
            encoded[name], bad = _encoded(side, made, chosen)
            unfit += bad
            if not encoded[name]:
                raise ValueError(f"none of the {len(side)} examples for {name} can be used ({bad[0]}): repair them")
        _refuse(read, unfit, allowed)
        about = {"template": source, "unfit": [[bad.place, bad.reason] for bad in unfit]}
        _write(out, made, encoded, {"request": request, "source": ", ".join(names), PAIRS: about})
    return Prepared(out, rows, malformed + unfit)


@dataclass(frozen=True, eq=False)
class PairSet:
    """Examples of one side: their tokens one after the other, which are learnt, and where each begins."""

    ids: np.ndarray
    answer: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


def is_pairs(folder: Path | str) -> bool:
    """Whether a prepared folder holds pairs."""
    return PAIRS in load_manifest(folder)


def load_pairs(folder: Path | str, split: str) -> PairSet:
    """The split "train" or "validation" of a folder of pairs. Raises ValueError where it is missing or damaged."""
    path = Path(folder) / f"{split}.safetensors"
    if split not in SPLITS or not is_pairs(folder):
        raise ValueError(f"{path}: no pairs there: prepare them with unmask prepare --pairs")
    data = path.read_bytes() if path.is_file() else b""
    written = load_manifest(folder)["splits"][split].get("blake2b")  # which older pairs do not say
    if not data or written not in (None, digest_of_bytes(data)):
        raise ValueError(f"{path} is missing or damaged: delete {folder} and run unmask prepare --pairs again")
    tensors = load(data)
    lengths = tensors["lengths"]
    return PairSet(tensors["ids"], tensors["answer"], np.cumsum(lengths) - lengths, lengths)


def load_template(folder: Path | str, tokenizer: Tokenizer) -> Template:
    """The chat template that a folder of pairs was written with."""
    return named_template(read_json(Path(folder) / MANIFEST)[PAIRS]["template"], tokenizer)


def _answered(out: Path, request: Row, template: str) -> list[Malformed] | None:
    """The rows that `out` left out as they were encoded; None where it is no whole preparation of this request."""
    if not (out / MANIFEST).is_file():
        return None
    manifest = load_manifest(out)
    if manifest["request"] != request or manifest[PAIRS]["template"] != template:
        return None
    for split in SPLITS:
        load_pairs(out, split)
    return [Malformed(*each) for each in manifest[PAIRS].get("unfit", [])]


def held_out_places(source: str) -> set[str]:
    """Where the rows stand (see `rows_of`) that `prepare_pairs` holds out of one source when it is given no other."""
    examples, _, _ = _examples([source], Reading(), None)
    return {place for place, _ in _sides(examples, VALIDATION)["validation"]}


def _examples(sources: Sequence[str], reading: Reading, progress: Callable[[int], None] | None) -> Read:
    examples: list[Placed] = []
    malformed: list[Malformed] = []
    count = 0
    for source in sources:
        for place, row in rows_of(source):
            count += 1
            if progress is not None:
                progress(count)
            if isinstance(row, Malformed):
                malformed.append(row)
                continue
            try:
                examples += [(place, example) for example in reading(row)]
            except ValueError as error:
                malformed.append(Malformed(place, str(error)))
    if not count:
        raise ValueError(f"{', '.join(sources)}: no rows: put some there")
    return examples, malformed, count


def _refuse(read: Mapping[str, Read], unfit: Sequence[Malformed], allowed: float) -> None:
    """Of each source, with what of its examples was `unfit` as tokens."""
    for examples, malformed, rows in read.values():
        places = {place for place, _ in examples}
        bad = [*malformed, *(each for each in unfit if each.place in places)]
        if len(bad) > allowed * rows:
            few = "; ".join(map(str, bad[:SHOWN]))
            more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            what = f"{len(bad)} of {rows} rows cannot be used, more than the share of {allowed:g}"
            raise ValueError(f"{what} that may be left out ({few}{more}): repair them, or allow more")


def _sides(examples: Sequence[Placed], validation: float) -> dict[str, list[Placed]]:
    """By a hash of what is given, so that no question stands on both sides; at least one on each."""
    if not 0 < validation < 1:
        raise ValueError(f"a validation share of {validation} leaves one side empty: choose between 0 and 1")
    share = {given: _share(given) for given in (_given(example) for _, example in examples)}
    if len(share) < 2:
        raise ValueError("one question alone cannot be split: give more rows, or a source to hold out")
    held_out = {given for given in share if share[given] < validation} or {min(share, key=share.__getitem__)}
    if len(held_out) == len(share):
        held_out.remove(max(share, key=share.__getitem__))
    sides: dict[str, list[Placed]] = {name: [] for name in SPLITS}
    for place, example in examples:
        sides[SPLITS[_given(example) in held_out]].append((place, example))
    return sides


def _given(example: Example) -> str:
    """The question: of SMDM's two passes, the same in both; of a text that is learnt as a whole, the text."""
    if isinstance(example, Chat):
        return next(content for role, content in example.messages if role == "user")
    if isinstance(example, Blanks):
        return example.text
    if isinstance(example, Between):
        return example.prompt + example.suffix
    return example.question or example.prompt or example.answer


def _share(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _texts(examples: Iterable[Example], template: Template) -> Iterator[str]:
    for example in examples:
        if isinstance(example, Chat):
            with suppress(ValueError):  # of a template that refuses it, which is counted where it is encoded
                yield "".join(piece.text for piece in template(example.messages))
        else:
            yield example.text if isinstance(example, Blanks) else example.prompt + example.answer
            yield from [example.suffix] if isinstance(example, Between) else []


def _encoded(rows: Sequence[Placed], tokenizer: Tokenizer, template: Template) -> tuple[list[Encoded], list[Malformed]]:
    u = keyed_uniforms(0, range(len(rows)), (UNIFORMS,), MASK).numpy()
    encoded, malformed = [], []
    for i, (place, example) in enumerate(rows):
        try:
            encoded.append(encode(example, tokenizer, template, u[i]))
        except ValueError as error:
            malformed.append(Malformed(place, str(error)))
    return encoded, malformed


def _write(out: Path, tokenizer: Tokenizer, sides: dict[str, list[Encoded]], manifest: dict[str, object]) -> None:
    partial = out.with_name(f".{out.name}.partial")
    dtype = np.dtype("<u2" if tokenizer.vocab < 2**16 else "<u4")
    counts = {}
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
    try:
        partial.mkdir(parents=True)
        tokenizer.save(partial)
        for name, encoded in sides.items():
            ids = np.concatenate([each.ids for each in encoded]).astype(dtype)
            answer = np.concatenate([each.answer for each in encoded])
            lengths = np.array([len(each.ids) for each in encoded], dtype=np.int64)
            data = save({"ids": ids, "answer": answer, "lengths": lengths})
            with atomic(partial / f"{name}.safetensors", "wb") as file:
                file.write(data)
            sizes = {"documents": len(encoded), "tokens": len(ids), "answers": int(answer.sum())}
            counts[name] = {**sizes, "blake2b": digest_of_bytes(data)}
        digest = _digest((partial / FILE).read_text(encoding="utf-8"))
        about = {"vocab": tokenizer.vocab, "begin": tokenizer.begin, "end": tokenizer.end, "blake2b": digest}
        write_json(partial / MANIFEST, {**manifest, "tokenizer": about, "dtype": dtype.str, "splits": counts})
        if out.is_dir():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest(text: str) -> str:
    return digest_of_bytes(text.encode())
