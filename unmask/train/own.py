"""What a network class of one's own owes, held against it before its run writes anything."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch

from unmask.checkpoint import CONFIG, describe, network_config
from unmask.network import Network
from unmask.train.config import TrainConfig
from unmask.transformer import Transformer
from unmask.wrappers import Apart

ROWS, LENGTH = 2, 16  # of the step that is tried


def require_sound(config: TrainConfig) -> None:
    """Raises ValueError where a network would be trained and not be what is resumed or loaded, or miscounts itself.

    Its configuration comes back from JSON as it was; its state is its trained weights, all of which get a gradient
    in a step on a few tokens, and the same ones from the same seed.
    """
    wanted = config.network
    name = type(wanted).__name__
    read = network_config({"network": json.loads(json.dumps(describe(wanted)))}, Path(name))
    if other := [each.name for each in fields(wanted) if getattr(read, each.name) != getattr(wanted, each.name)]:
        raise ValueError(f"{name}: {other[0]} is read as another from {CONFIG}: give a number, a text or a tuple")
    with _told(name):
        state, drawn = dict(wanted.build(config.seed).state_dict()), wanted.build(config.seed)
    weights = dict(drawn.named_parameters())
    said, there = wanted.parameters()["total"], sum(weight.numel() for weight in weights.values())
    if said != there:
        raise ValueError(f"{name}.parameters() tells {said:,}, but its network has {there:,}: 6ND would be wrong")
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    beside = [name for name, _ in drawn.named_buffers()] + sorted(state.keys() - weights.keys()) + frozen
    if beside:
        what = "a buffer, frozen, or the same as another: a run keeps the weights that it trains, each once"
        raise ValueError(f"{name}: {beside[0]} is {what}")
    if drawn_anew := [key for key, weight in drawn.state_dict().items() if not torch.equal(weight, state[key])]:
        raise ValueError(f"{name}: the same seed draws {drawn_anew[0]} anew: draw it in initialise(generator)")
    with _told(name):
        _step(config, drawn)
    if left := [name for name, weight in weights.items() if weight.grad is None]:
        raise ValueError(f"{name}: {left[0]} gets no gradient from a step, which a run cannot resume: leave it out")


def _step(config: TrainConfig, network: Transformer) -> None:
    length = min(LENGTH, config.length) + 1
    x_0 = torch.arange(ROWS * length).view(ROWS, length) % config.network.vocab
    maskable = (torch.arange(length) > 0).expand(ROWS, length)
    segments = torch.arange(length).div(max(2, length // 2), rounding_mode="floor").expand(ROWS, length)
    reader: Network = Apart(network, segments) if config.documents_apart or config.packed else network
    u = torch.full((ROWS,), 0.5, dtype=torch.float64)
    noise = torch.rand(ROWS, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config.objective(reader, x_0, maskable, u, noise).sum().backward()


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What goes wrong in someone's class, in one line that says where."""
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except ValueError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = [each for each in frames if not each.filename.startswith(str(Path(torch.__file__).parent))][-1]
        reason = (str(error).splitlines() or [""])[0]
        said = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {reason}"
        raise ValueError(f"{name}, tried on a few tokens: {said}") from error
