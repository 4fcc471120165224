"""Files to documents, in pieces of bounded size: text, JSON lines, parquet, compressed or in an archive."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from unmask.data.tokenizer import GAP

CHUNK = 1 << 21  # bytes of a text file read at once: pieces of it have about as many characters
TEXT, LINES, PARQUET = (".txt",), (".jsonl", ".ndjson"), (".parquet",)
ARCHIVES = (".tar", ".tgz", ".zip")
COMPRESSED = (".gz", ".xz", ".zst", ".bz2")
HIDDEN = re.compile(r"(?:^|/)(?:\.(?!\.?/)|__MACOSX/)")  # the latter holds what macOS adds to archives
DATE = re.compile(r"(\d{4})([-/]?)(\d{2})\2(\d{2})(?!\d)")
DAMAGE = (zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)

Rule = Callable[[str], str]


@dataclass(frozen=True)
class Part:
    """A piece of a document, cut at a gap. `date` is ISO 8601 (YYYY-MM-DD) where it is known."""

    name: str
    """Of the document, unique in its source."""
    text: str
    date: str | None = None
    last: bool = True
    """Whether the document ends here."""
    key: str | None = None
    """What decides the side of a split that the document falls on, where it is not its name: a record's own text."""
    read: float = 1.0
    """Share of its file that has been read."""


def suffix_of(name: str) -> str:
    """The suffix that says what a file holds, compression apart."""
    path = Path(name.lower())
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def kind_of(name: str) -> str | None:
    """The suffix that says how a file is read; None where nothing is known for it."""
    suffix = suffix_of(name)
    return suffix if suffix in TEXT + LINES + PARQUET + ARCHIVES else None


def hidden(name: str) -> bool:
    """Whether a file of a folder or an archive is hidden, or lies in a folder that is."""
    return HIDDEN.search(name) is not None


def check(file: str) -> None:
    """Raises ValueError for a file that cannot be read or written of, by its name alone."""
    if any("\ud800" <= letter <= "\udfff" for letter in file):  # how Python shows bytes that are not UTF-8
        raise ValueError(f"the name {file!a} is not UTF-8: rename it")
    kind = kind_of(file)
    if kind in (*PARQUET, ".zip") and Path(file).suffix.lower() in COMPRESSED:
        raise ValueError(f"{file}: a {kind} file is read from any place in it, which compression hides: uncompress it")


def parts_of(path: Path, name: str, field: str, rule: Rule | None) -> Iterator[Part]:
    """The documents of a file, by its suffix; a file of any other kind is text.

    `field` is the one of a record that holds text; `rule` rewrites each record, or each line of a text. Raises
    ValueError, naming the file, for what cannot be read, is not UTF-8 or holds no text.
    """
    kind = kind_of(path.name)
    with _named(path):
        if kind in PARQUET:
            yield from _parquet(path, name, field, rule)
        elif kind == ".zip":
            yield from _zip(path, name, field, rule)
        else:
            with _opened(path) as (stream, share):
                if kind in ARCHIVES:
                    yield from _tar(path, stream, name, field, rule, share)
                else:
                    yield from _stream(stream, str(path), name, kind, field, rule, share)


def text_of(path: Path) -> str:
    """All of a file's text, decompressed. Byte-order marks are dropped, line ends become \\n. Raises as `parts_of`."""
    with _named(path), _opened(path) as (stream, _):
        return "".join(_decoded(stream, str(path)))


class UnreadError(ValueError):
    """The system did not let a file be read, which it may another time."""


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What cannot be read as a ValueError that names it; an UnreadError where it is the system's doing."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, UnicodeDecodeError, *DAMAGE) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        kind = UnreadError if getattr(error, "errno", None) else ValueError
        raise kind(f"cannot read {path}: {reason}") from None


Share = Callable[[], float]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Share]]:
    """The bytes of a file, decompressed, and how much of it has been read."""
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        size = max(1, path.stat().st_size)
        yield stack.enter_context(_inflated(raw, str(path))), lambda: min(1.0, raw.tell() / size)


def _inflated(raw: IO[bytes], name: str) -> Any:
    """The bytes of a file or of a member of an archive, decompressed by the suffix of its name."""
    suffix = Path(name).suffix.lower()
    if suffix in (".gz", ".tgz"):
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".bz2":
        return bz2.BZ2File(raw)
    return _zstandard(raw, name) if suffix == ".zst" else nullcontext(raw)


def _zstandard(raw: IO[bytes], name: str) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise ValueError(f"{name} needs the package zstandard: pip install 'unmask[data]'") from None

    class Reader(io.RawIOBase):
        """Its own errors, which are neither OSError nor RuntimeError, as OSError."""

        def __init__(self) -> None:
            self.inner = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(raw, read_across_frames=True)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            try:
                return self.inner.readinto(buffer)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from None

    return io.BufferedReader(Reader(), CHUNK)


def _stream(
    stream: IO[bytes], where: str, name: str, kind: str | None, field: str, rule: Rule | None, share: Share
) -> Iterator[Part]:
    if kind in LINES:
        yield from _lines(stream, where, name, field, rule, share)
    else:
        yield from _text(stream, where, name, rule, share)


def _text(stream: IO[bytes], where: str, name: str, rule: Rule | None, share: Share) -> Iterator[Part]:
    """One document. Byte-order marks are dropped, line ends become \\n."""
    blank, rest = True, ""
    whole: list[str] = []  # before the rest, without a gap
    for text in _lines_rewritten(_decoded(stream, where), rule):
        blank = blank and not text.strip()
        rest += text
        if len(rest) < CHUNK:
            continue
        gap = _last_gap(rest)
        if gap is None:
            whole.append(rest[:-2])  # the last two may begin a gap
            rest = rest[-2:]
        else:
            yield Part(name, "".join([*whole, rest[:gap]]), last=False, read=share())
            whole, rest = [], rest[gap:]
    if blank:
        raise ValueError(f"{where} is empty: remove it or put text in it")
    yield Part(name, "".join([*whole, rest]), read=share())


def _decoded(stream: IO[bytes], where: str) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), True)
    read = 0
    while True:
        data = stream.read(CHUNK)
        read += len(data)
        try:
            yield decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = read - len(error.object) + error.start
            raise ValueError(f"{where} is not UTF-8 (byte {at}): convert it, say with iconv") from None
        if not data:
            return


def _lines_rewritten(texts: Iterator[str], rule: Rule | None) -> Iterator[str]:
    """Each line as the rule has it, its end included: the rows of a benchmark are its lines."""
    if rule is None:
        yield from texts
        return
    rest = ""
    for text in texts:
        *lines, rest = (rest + text).split("\n")
        yield "".join(rule(f"{line}\n") for line in lines)
    yield rule(rest) if rest else ""


def _last_gap(text: str) -> int | None:
    """Where the last gap is that a text may be cut at."""
    for start in (max(0, len(text) - 4096), 0):
        gaps = [gap.start() for gap in GAP.finditer(text, start)]
        if gaps:
            return gaps[-1]
    return None


def _lines(stream: IO[bytes], where: str, name: str, field: str, rule: Rule | None, share: Share) -> Iterator[Part]:
    """A document a line: a JSON object with a text and maybe a date."""
    found = False
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        at = f"{where}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{at} is not UTF-8 (byte {error.start}): convert it, say with iconv") from None
        except (ValueError, RecursionError):
            raise ValueError(f"{at} is not JSON: restore or remove the line") from None
        if not isinstance(row, dict) or field not in row:
            has = f"has the fields {', '.join(map(str, row))}" if isinstance(row, dict) else "is no object"
            raise ValueError(f"{at} {has}, not {field!r}: name the one that holds the text with --field, or rename it")
        part = record(row, f"{name}:{number}", at, field, rule, share())
        found = found or part is not None
        if part is not None:
            yield part
    if not found:
        raise ValueError(f"{where} is empty: remove it or put text in it")


def record(row: dict, name: str, where: str, field: str, rule: Rule | None, read: float) -> Part | None:
    """The document of a record; None where its text is missing or blank. Raises ValueError where it is no text."""
    text = row[field]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"{where}: {field!r} is a {type(text).__name__}, no text: name another with --field, or rename one"
        )
    if text is None or not text.strip():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: half a surrogate pair in {field!r}, which UTF-8 cannot carry: remove it") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text if rule is None else rule(text)
    return Part(name, text, _calendar(str(row.get("date") or "")), key=text, read=read)


def _calendar(date: str) -> str | None:
    """The date that a text begins with, where there is such a day."""
    import datetime

    found = DATE.match(date)
    try:
        return datetime.date(*map(int, found.group(1, 3, 4))).isoformat() if found else None
    except ValueError:
        return None


@contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """The file as pyarrow opens it. Raises ValueError without pyarrow, and where what is read is damaged."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path} needs the package pyarrow: pip install 'unmask[data]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no parquet file to read ({' '.join(str(error).split())}): restore it") from None


def _parquet(path: Path, name: str, field: str, rule: Rule | None) -> Iterator[Part]:
    with opened_parquet(path) as file:
        columns = file.schema_arrow.names
        if field not in columns:
            has = ", ".join(columns)
            raise ValueError(f"{path} has the columns {has}, not {field!r}: name one with --field, or rename it")
        batches = file.iter_batches(batch_size=1000, columns=[field, *{"date"} & set(columns) - {field}])
        yield from rows(batches, file.metadata.num_rows, str(path), name, field, rule)


def rows(batches: Any, total: int, where: str, name: str, field: str, rule: Rule | None) -> Iterator[Part]:
    """Documents of Arrow record batches."""
    number, found = 0, False
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            part = record(row, f"{name}:{number}", f"{where}, row {number}", field, rule, number / total)
            found = found or part is not None
            if part is not None:
                yield part
    if not found:
        raise ValueError(f"{where} is empty: remove it or put text in it")


def _tar(path: Path, stream: IO[bytes], name: str, field: str, rule: Rule | None, share: Share) -> Iterator[Part]:
    found = False
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None and _ours(member.name):
                check(f"{path}/{member.name}")
                found, where, inner = True, f"{path}/{member.name}", f"{name}/{member.name}"
                with _inflated(file, member.name) as text:
                    yield from _stream(text, where, inner, kind_of(member.name), field, rule, share)
    _require(found, path)


def _zip(path: Path, name: str, field: str, rule: Rule | None) -> Iterator[Part]:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if _ours(info.filename)]
        _require(bool(members), path)
        done, total = 0, max(1, sum(info.compress_size for info in members))
        for info in members:
            with archive.open(info) as file:
                where, inner = f"{path}/{info.filename}", f"{name}/{info.filename}"
                share = partial(_behind, file, info, done, total)
                with _inflated(file, info.filename) as text:
                    yield from _stream(text, where, inner, kind_of(info.filename), field, rule, share)
            done += info.compress_size


def _behind(file: IO[bytes], info: zipfile.ZipInfo, done: int, total: int) -> float:
    """Share of an archive that has been read, of which `done` bytes are behind this member."""
    return (done + info.compress_size * file.tell() / max(1, info.file_size)) / total


def _ours(member: str) -> bool:
    return kind_of(member) in TEXT + LINES and not hidden(member) and not member.endswith("/")


def _require(found: bool, path: Path) -> None:
    if not found:
        raise ValueError(f"{path} holds no {' or '.join(TEXT + LINES)} file: put the texts there")
