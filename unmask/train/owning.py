"""One run folder, one job: a lock of the operating system, which a killed process lets go of."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unmask import ranks

LOCK = ".lock"


@contextmanager
def owned(run: Path) -> Iterator[None]:
    """Hold the run folder. Raises ValueError where another process does."""
    handle: int | None = None

    def hold() -> None:
        nonlocal handle
        handle = _hold(run)

    ranks.agreed(hold)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _hold(run: Path) -> int | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    run.mkdir(parents=True, exist_ok=True)
    handle = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 200).decode(errors="replace").strip()
        os.close(handle)
        raise ValueError(f"{run}: already being trained by {owner}: wait for it, or choose another --out") from None
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return handle
