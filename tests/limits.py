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
    """Raises Late after `seconds` of the processor, or ten times as many of the clock (on a busy machine little is done
    in a second); an allocation beyond `room` fails with MemoryError or RuntimeError.
    """

    def late(signum: int, frame: object) -> None:
        raise Late(f"took more than {seconds} s")

    kinds = (signal.SIGPROF, signal.SIGALRM)

    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    old = [signal.signal(kind, late) for kind in kinds]
    resource.setrlimit(resource.RLIMIT_AS, (mapped + room, before[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(10 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        for kind, handler in zip(kinds, old, strict=True):
            signal.signal(kind, handler)
