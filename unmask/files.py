"""Files that appear whole or not at all, files that one process holds, and JSON that says what is wrong with it."""

import json
import math
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file that appears whole or not at all: written beside `path`, flushed to disk, then renamed onto it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        readable(Path(name))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def flat(row: Row, before: str = "") -> Iterator[tuple[str, str]]:
    """A nested row as (dotted name, value as text) pairs."""
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield before + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def different(first: Row, second: Row) -> list[tuple[str, str | None, str | None]]:
    """(dotted name, value, value) of what differs between two nested rows, None where one has no such thing."""
    one, two = dict(flat(first)), dict(flat(second))
    names = dict.fromkeys([*one, *two])
    return [(name, one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)]


def vacant(folder: Path, *, hidden: bool = False) -> None:
    """Raises ValueError where files of ours would come to lie in a folder among others; `hidden` ones may be there."""
    if folder.is_file() or any(folder.glob("[!.]*" if hidden else "*")):
        raise ValueError(f"{folder} exists and holds something else: choose another folder (--out) or remove it")


def writable(path: Path | None) -> None:
    """Raises ValueError where no file can be put at `path`, of which nothing is made: to be known before the work."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file in it")
    try:  # access rights are not all: root may write in /proc, where nothing can be made
        tempfile.TemporaryFile(dir=next(folder for folder in path.parents if folder.exists())).close()
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): choose another place") from None


def readable(path: Path) -> None:
    """Give a file the rights of any new one: `mkstemp` and safetensors make files that only their owner reads."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


class HeldError(ValueError):
    """Another process holds what this one wants."""


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the file `path`, which no two processes can: a lock of the operating system, that a killed one lets go of.

    Raises HeldError, beginning with `what`, where another process does, and ValueError where nothing can be written.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        handle = _held(path, what)
    except OSError as error:
        raise ValueError(f"cannot write in {path.parent} ({error.strerror}): choose another folder") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes nothing that is open
            path.unlink()
        os.close(handle)
        with suppress(OSError):  # a folder that was made for this alone goes with it
            for folder in made:
                folder.rmdir()


def _held(path: Path, what: str) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder went with another process's lock
            if path.parent.is_dir():  # or takes no file, as /proc
                raise
            continue
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (path.exists() and os.path.samestat(os.fstat(handle), path.stat())):
                os.close(handle)  # whoever held it removed it in the meantime: what is locked is no longer there
                continue
        except ImportError:
            pass  # Windows has no flock: there nothing keeps a second process out
        except BlockingIOError:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise HeldError(f"{what} by {owner}: wait for it, or choose another folder") from None
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return handle


def write_json(path: Path, value: object) -> None:
    """Atomically; numbers that JSON has no word for (nan, infinity) become null."""
    with atomic(path) as file:
        json.dump(finite(value), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Row:
    """Raises ValueError, naming the file, where it is missing or holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets nested too deep
        raise ValueError(f"{path}: not JSON ({error}): restore or remove it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def read_lines(path: Path) -> list[Row]:
    """Rows of a .jsonl that is appended to; a last line cut off by a crash is left out.

    Raises ValueError for any other line that is no JSON object.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) and not line.endswith(b"\n"):
                break
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: no JSON object; remove the line to go on")
        rows.append(row)
    return rows


def is_number(value: object) -> bool:
    """Whether JSON data are a finite number that can be computed with, squared as well."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100


def finite(value: object) -> object:
    """The value with nan and infinity, which JSON has no word for, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
