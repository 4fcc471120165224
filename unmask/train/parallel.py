"""Parallelism, recomputation and compilation, applied to a network from outside: it never asks for its rank."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from unmask import ranks
from unmask.network import Network
from unmask.train.precision import Precision
from unmask.transformer import Transformer

Parallel = Literal["ddp", "fsdp"]


def place(
    network: Transformer,
    device: torch.device,
    *,
    parallel: Parallel,
    precision: Precision,
    recompute: bool = False,
    compiled: bool = False,
) -> Transformer:
    """The network on its device, its blocks recomputed or compiled, and under "fsdp" its weights sharded.

    FSDP2 shards each block by itself and the rest together. With bfloat16 the blocks' weights travel in it; gradients
    are always summed in float32, and autocast stays what says which products are taken in bfloat16.
    """
    for block in network.blocks:
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            block.compile()
    if not sharded(parallel):
        return network.to(device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (ranks.world(),))
    narrow = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bfloat16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in network.blocks:
        fully_shard(block, mesh=mesh, mp_policy=narrow)  # moved to the device here, a block at a time
    fully_shard(network, mesh=mesh)
    return network


def sharded(parallel: Parallel) -> bool:
    """Whether each process holds a part of the weights only. Raises ValueError where torch could not save it."""
    if parallel != "fsdp" or ranks.world() == 1:
        return False
    from torch.distributed import checkpoint as saving

    if not hasattr(saving, "HuggingFaceStorageWriter"):
        told = f"torch {torch.__version__} writes no sharded safetensors"
        raise ValueError(f"parallel fsdp: {told}: install a newer one, or choose --parallel ddp")
    return True


def together(network: Transformer, parallel: Parallel) -> Network:
    """The network as it is called in training: its gradients come out as the mean over all processes."""
    if ranks.world() == 1 or sharded(parallel):
        return network
    outside: Any = DistributedDataParallel(network)
    for name in ("vocab", "mask_id", "causal", "normalised"):
        setattr(outside, name, getattr(network, name))
    return outside


@contextmanager
def summed(network: Any, last: bool) -> Iterator[None]:
    """Let processes exchange gradients behind the last part of a step only."""
    if isinstance(network, DistributedDataParallel):
        with nullcontext() if last else network.no_sync():
            yield
        return
    if hasattr(network, "set_requires_gradient_sync"):
        network.set_requires_gradient_sync(last)
    yield


@contextmanager
def gathered_whole(network: Transformer) -> Iterator[None]:
    """The network with all its weights in every process, for evaluations in which processes do not go in step."""
    modules: list[Any] = [module for module in network.modules() if hasattr(module, "unshard")]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(module is not network, recurse=False)
            module.reshard()


def clip(network: nn.Module, limit: float) -> Tensor:
    """Scale the gradient to a norm of at most `limit` (0: no limit); returns the norm that it had, over all shards."""
    norm = nn.utils.clip_grad_norm_(network.parameters(), limit or math.inf)
    return whole(norm)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in full, in every process; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyrefly: ignore
