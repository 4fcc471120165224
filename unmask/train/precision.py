"""Which numbers matrix products are computed in."""

import itertools
import math
import time
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "float32", "bfloat16"]
TURNS = 20  # of a few milliseconds: some of them are undisturbed


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Matrix products in bfloat16 where `precision` says so; nothing else changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class Later:
    """Numbers on a device, read when they are there: asking for them at once would leave a GPU without work."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers.to("cpu", non_blocking=True)
        self.ready = torch.cuda.Event() if numbers.device.type == "cuda" else None
        if self.ready is not None:
            self.ready.record()

    def values(self) -> list[float]:
        if self.ready is not None:
            self.ready.synchronize()
        return self.numbers.tolist()


def best_precision(device: torch.device) -> Precision:
    """bfloat16 where a matrix product in it is at least 1.5 times faster, forward and backward, else float32.

    The two take turns, and the best turn of each counts: other work on the machine comes and goes.
    """
    pairs = {
        dtype: [torch.ones(512, 512, device=device, dtype=dtype) for _ in range(2)]
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(pairs, math.inf)
    for _, (dtype, (a, b)) in itertools.product(range(TURNS), pairs.items()):
        _synchronise(device)
        start = time.perf_counter()
        a @ b, a.T @ b
        _synchronise(device)
        best[dtype] = min(best[dtype], time.perf_counter() - start)
    return "bfloat16" if best[torch.float32] > 1.5 * best[torch.bfloat16] else "float32"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
