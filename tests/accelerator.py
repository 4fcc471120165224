"""A simulated accelerator, for machines that have none: the device "there", by torch's backend for Python.

A tensor there has no numbers of its own: they lie, as a tensor of the CPU's, beside its storage, and each operation is
done on those, by a GPU's rules and a little more: what is computed together lies on one device (but for a number
alone), and what the host reads it has to wait for, which is noted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.library import Library, fallthrough_kernel
from torch.utils import _pytree as trees
from torch.utils import backend_registration

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch cannot have a device in Python", allow_module_level=True)

THERE = "there"
READ = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount", "repeat_interleave.Tensor")
"""Operations of which the host must know the result, or its shape."""
INDEXED = ("index.", "index_put", "_index_put", "_unsafe_index")
"""So must it of these, where a mask says which."""
LOWERED = ("linear", "mm", "addmm", "bmm", "baddbmm", "matmul", "scaled_dot_product_attention")
"""What autocast computes in fewer bits."""
WAITS: list[str] = []
LACKING: set[torch.dtype] = set()
"""What no number there can be, as float64 on Apple's GPUs."""


@contextmanager
def waits() -> Iterator[list[str]]:
    """The operations within that the host waited for."""
    WAITS.clear()
    yield WAITS


def is_there(value: object) -> bool:
    """Whether it is a tensor there."""
    return isinstance(value, Tensor) and value.device.type == THERE


def numbers(tensor: Tensor) -> Tensor:
    """Those of a tensor there, on the CPU."""
    found = tensor.untyped_storage().numbers  # pyrefly: ignore
    assert found.shape == tensor.shape
    return found


def put(found: Tensor) -> Tensor:
    """A tensor there. Raises TypeError, as Apple's GPUs do, for a kind of number that there is none of."""
    if found.dtype in LACKING:
        raise TypeError(f"{THERE} has no {found.dtype}")
    with torch.inference_mode(False):  # else a view of a weight, made there, could not be one
        tensor = torch._C._acc.create_empty_tensor(found.shape, found.dtype)
    tensor.untyped_storage().numbers = found  # pyrefly: ignore
    return tensor


def run(op: OpOverload, *args, **kwargs):
    """An operation, on the numbers."""
    name, (flat, shape) = op.name().removeprefix("aten::"), trees.tree_flatten((args, kwargs))
    here = [x for x in flat if isinstance(x, Tensor) and x.dim() and not is_there(x)]
    if here and name not in ("_to_copy", "copy_") and any(map(is_there, flat)):
        raise RuntimeError(f"{name}: one tensor lies there, one of shape {tuple(here[0].shape)} on the CPU")
    brought = name == "_to_copy" and str(kwargs.get("device")) == "cpu"
    masks = [x for x in flat if is_there(x) and x.dtype == torch.bool] if name.startswith(INDEXED) else []
    if brought or masks or name in READ:
        WAITS.append(name)
    given = [numbers(x) if is_there(x) else torch.device("cpu") if isinstance(x, torch.device) else x for x in flat]
    args, kwargs = trees.tree_unflatten(given, shape)
    # a tensor there tells no strides: what torch takes for a view of it may be none of its numbers
    made = args[0].reshape(args[1]) if name in ("view", "_unsafe_view") else op(*args, **kwargs)

    def returned(value):
        if brought or not isinstance(value, Tensor):
            return value
        same = [x for x, number in zip(flat, given, strict=True) if number is value]
        return same[0] if same else put(value)

    return trees.tree_map(returned, made)


def lower(op: OpOverload, *args, **kwargs):
    """An operation under autocast."""

    def low(value):
        wide = is_there(value) and value.dtype == torch.float32
        return value.to(torch.get_autocast_dtype(THERE)) if wide else value

    args, kwargs = trees.tree_map(low, (args, kwargs))
    with torch.autocast(THERE, enabled=False):
        return op(*args, **kwargs)


class Module(backend_registration._DummyBackendModule):
    """What torch asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(THERE, backend_module=Module())
OPERATIONS, OTHERS = Library("aten", "IMPL"), Library("_", "IMPL")
OTHERS.fallback(fallthrough_kernel, "AutocastPrivateUse1")
for each in LOWERED:
    OPERATIONS.impl(each, partial(lower, getattr(torch.ops.aten, each).default), "AutocastPrivateUse1")
for each in torch._C._dispatch_get_all_op_names():
    space, _, rest = each.partition("::")
    packet, _, overload = rest.partition(".")
    op = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
    made_of_others = torch._C._dispatch_has_kernel_for_dispatch_key(each, "CompositeImplicitAutograd")
    if space == "aten" and op is not None and not made_of_others and rest != "detach":
        OPERATIONS.impl(rest, partial(run, op), "PrivateUse1")
