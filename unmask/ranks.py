"""Which share of the work is this process's: the one module that knows of ranks.

`torchrun` starts W processes that tell each other apart by a rank. A network, a loss, a sampler never ask for theirs:
the trainer and the evaluations take their share of the sequences here and give it back to all. Randomness is keyed by
the number of a sequence, so what W processes find is what one would have found. In one process everything here is
free.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from unmask.likelihood import Estimate


def world() -> int:
    """Number of processes of this job."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if world() > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `torchrun` (or anything that sets its variables) started; alone there is nothing to join.

    Collectives run over gloo on CPUs and NCCL on GPUs, of which each process takes the one of its local rank.
    """
    told = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    if not all(map(str.isdigit, told)) or int(told[1]) < 2 or not dist.is_available() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def lost() -> Iterator[None]:
    """What a collective says when another process is gone, as a ConnectionError of one line."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        if world() < 2 or not (isinstance(error, dist.DistError) or "gloo" in said or "nccl" in said):
            raise
        raise ConnectionError(
            f"rank {rank()}: another process of the job is gone (killed, out of memory, or stopped by an error of its "
            "own): all stop; the same command goes on from the last checkpoint, with as many processes as there are"
        ) from None


def total(*numbers: float) -> list[float]:
    """Each number summed over all processes, on the host in float64."""
    if world() == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def largest(number: int) -> int:
    """The largest of all processes' numbers, on the host."""
    if world() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def summed(number: Tensor) -> Tensor:
    """A number on a device summed over all processes; nobody waits for it."""
    if world() > 1:
        dist.all_reduce(number)
    return number


def agreed(work: Callable[[], Any]) -> Any:
    """What `work` returns in the first process, as JSON data in all of them; its ValueError or OSError is raised in
    all.
    """
    if world() == 1:
        return work()
    told, error = {}, None
    if rank() == 0:
        try:
            told = {"value": work()}
        except (ValueError, OSError) as caught:
            told, error = {"error": str(caught), "type": type(caught).__name__}, caught
    told = _everyones(told)[0]
    if error is not None:
        raise error
    if "error" in told:
        raise (OSError if told["type"] != "ValueError" else ValueError)(told["error"])
    return told["value"]


def wait() -> None:
    """Until every process has come here."""
    total(0)


def share(count: int) -> list[int]:
    """Which of `count` pieces of work are this process's: every W-th, so that all kinds are spread evenly."""
    return list(range(rank(), count, world()))


def gathered(mine: Sequence[Any], count: int) -> list[Any]:
    """JSON data of every piece of work in order, each process giving those of its `share`."""
    whole: list[Any] = [None] * count
    for of, values in enumerate(_everyones(list(mine))):
        whole[of :: world()] = values
    return whole


def likelihood(
    score: Callable[[Int[Tensor, " s"]], Estimate], count: int, documents: Int[Tensor, " S"] | None = None
) -> Estimate:
    """The estimate of `count` sequences, each process scoring its share: `score` is given which ones they are.

    `score` must key its randomness by these numbers; then the result is that of one process, bit for bit but for the
    size of its network calls. `documents` says of all sequences which belong together; what `score` says of its
    share's is not asked.
    """
    mine = torch.tensor(share(count), dtype=torch.long)
    estimate = score(mine) if len(mine) else None
    told = None if estimate is None else {**estimate.row(), "seed": estimate.seed}
    values = [] if estimate is None else list(zip(estimate.replicates.tolist(), estimate.sizes.tolist(), strict=True))
    rows = gathered(values, count)
    heads = [head for head in _everyones(told) if head is not None]
    names = ("estimator", "precision", "bound", "draws", "seed")
    return Estimate.of(
        torch.tensor([row for row, _ in rows], dtype=torch.float64),
        torch.tensor([size for _, size in rows]),
        documents,
        evaluations=sum(head["evaluations"] for head in heads),
        **{name: heads[0][name] for name in names},
    )


def _everyones(value: Any) -> list[Any]:
    """The JSON data of every process, by rank: as text, for nothing is unpickled here."""
    if world() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(data)]))
    longest = max(int(size) for size in sizes)
    parts = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(parts, torch.cat([data, data.new_zeros(longest - len(data))]))
    return [json.loads(bytes(part[: int(size)].numpy())) for part, size in zip(parts, sizes, strict=True)]
