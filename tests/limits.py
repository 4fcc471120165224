"""Limits of time and memory for what is fed to the package: a hang or a flood is a fault like a traceback."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Late(BaseException):
    """Not an error that a command might answer."""


ROOM = 2 << 30  # bytes beyond what the process has mapped


@contextmanager
def limited(seconds: int = 20, room: int = ROOM) -> Iterator[None]:
    """Raises Late after `seconds`; an allocation beyond `room` fails with MemoryError or RuntimeError."""

    def late(signum: int, frame: object) -> None:
        raise Late(f"took more than {seconds} s")

    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    old = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, old)
