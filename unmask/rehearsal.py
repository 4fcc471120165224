"""What work would cost: it is begun, left after a few seconds, and what it took until then is scaled to the whole.

So the cost is that of the very code that would run, on this machine, whatever network, policy and settings it has.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from unmask import ranks
from unmask.log import console, say
from unmask.units import count, duration, power
from unmask.wrappers import Counted

SECONDS = 2.0

Count = Callable[[Any], Any]
"""Network (or a model) -> the same, counted."""
Work = Callable[[Count, Callable[[int, int], None]], object]
"""Work that counts its networks and tells its progress: (done, total)."""


@dataclass(frozen=True)
class Cost:
    """What work takes, or would."""

    evaluations: float
    """Network evaluations: rows run."""
    flops: float
    seconds: float
    """Of the clock, on this machine."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.evaluations + other.evaluations, self.flops + other.flops, self.seconds + other.seconds)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.evaluations * times, self.flops * times, self.seconds * times)

    def tell(self, *, json: bool) -> None:
        """To people, or as a record for machines."""
        if json:
            say({"evaluations": round(self.evaluations), "flops": self.flops, "seconds": self.seconds})
            return
        work = f"{power(self.flops, 2)} FLOPs, " if self.flops else ""  # a table of an audit multiplies nothing
        said = f"about {count(self.evaluations)} network evaluations, {work}"
        console.print(f"{said}{duration(float(f'{self.seconds:.2g}'))} on this machine")


def total(costs: Iterable[Cost]) -> Cost:
    """Of one piece of work after the other."""
    return sum(costs, Cost(0.0, 0.0, 0.0))


class _Left(BaseException):
    """Nothing that the work might answer."""


def rehearsed(work: Work, seconds: float = SECONDS) -> Cost:
    """The cost of all of `work`, judged by its beginning; of work that ends sooner it is what it took.

    It is begun twice, since counting FLOPs takes time of its own. Raises ValueError in a job of several processes.
    """
    if ranks.world() > 1:
        raise ValueError("what it would cost is told by one process: leave out torchrun")
    spent, evaluations, _ = _begun(work, seconds)
    with FlopCounterMode(display=False) as counter:
        _, _, share = _begun(work, seconds)
    return Cost(evaluations, counter.get_total_flops() / share, spent)


def _begun(work: Work, seconds: float) -> tuple[float, float, float]:
    """(seconds of the whole, evaluations of the whole, the share of it that was done)."""
    networks: list[Counted] = []
    share, start = 1.0, time.perf_counter()

    def counted(network: Any) -> Any:
        networks.append(Counted(network))
        return networks[-1]

    def told(done: int, total: int) -> None:
        nonlocal share
        share = done / total
        if time.perf_counter() - start > seconds and done:
            raise _Left

    with suppress(_Left):
        work(counted, told)
    return (time.perf_counter() - start) / share, sum(each.ran for each in networks) / share, share
