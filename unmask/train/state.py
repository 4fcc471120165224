"""What a run learns: weights, their average, and the optimiser's moments; in one piece or sharded."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unmask.lora import attach
from unmask.train import checkpoints
from unmask.train.config import TrainConfig
from unmask.train.optimiser import _fused_on, optimisers
from unmask.train.parallel import place, sharded, together
from unmask.transformer import Transformer

Weights = Mapping[str, Tensor]


class State:
    """The network, its average where one is kept, and the optimiser, placed as the configuration says."""

    def __init__(self, config: TrainConfig, device: torch.device, initial: Weights | None = None) -> None:
        self.config, self.device = config, device
        self.sharded = sharded(config.parallel)
        put = partial(place, device=device, parallel=config.parallel, precision=config.precision)
        self.network = put(self._drawn(initial), recompute=config.recompute, compiled=config.compile)
        self.average = put(self._drawn(initial)) if config.ema else None
        self.call = together(self.network, config.parallel)
        self.optimisers = optimisers(self.network, config.optimiser)
        self.moments = {
            p: each.state[p] for each in self.optimisers for part in each.param_groups for p in part["params"]
        }

    def _drawn(self, initial: Weights | None) -> Transformer:
        config = self.config
        if config.lora:
            assert initial is not None
            network = config.network.build(None)
            network.load_state_dict({name: self._kept(value) for name, value in initial.items()}, assign=True)
            attach(network, config.lora, config.lora_on, config.seed)
            return network
        network = config.network.build(config.seed)
        if initial is not None:
            network.load_state_dict(dict(initial))
        return network

    def _kept(self, weight: Tensor) -> Tensor:
        """One that is not trained stays as it is stored, but where products or FSDP's shards are of float32."""
        return weight.float() if self.config.precision == "float32" or self.sharded else weight

    def advance(self, step: int, rate: float) -> None:
        """Use and forget the gradient of step `step` (from 0) at a learning rate, and move the average."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            decay = min(self.config.ema, (2 + step) / (11 + step))
            means, values = (tuple(network.parameters()) for network in (self.average, self.network))
            with torch.no_grad():
                get_ema_multi_avg_fn(decay)(means, values, None)

    def write(self, folder: Path) -> None:
        """Put the state into a checkpoint's folder: the weights to use, then what else resuming needs."""
        network = trained(self.network)
        rest: dict[str, Tensor] = {}
        if self.average is not None:
            rest |= {f"network.{name}": value for name, value in network.items()}
        for name, parameter in network.items():
            rest |= {f"{key}.{name}": moment for key, moment in self.moments[parameter].items()}
        checkpoints.write(folder, self._used(), rest, sharded=self.sharded)

    def restore(self, folder: Path) -> int:
        """Take up the state of a checkpoint, in place; returns its step. Raises ValueError where it does not fit."""
        found = checkpoints.contents(folder)
        network = trained(self.network)
        into = self._used()
        if self.average is not None:
            into |= {f"network.{name}": value for name, value in network.items()}
        keys = {name.partition(".")[0] for name in found} - {"network"}
        for name, parameter in network.items():
            moments = {key: found[f"{key}.{name}"] for key in sorted(keys) if f"{key}.{name}" in found}
            self.moments[parameter].update({key: self._empty(parameter, shape) for key, shape in moments.items()})
            into |= {f"{key}.{name}": moment for key, moment in self.moments[parameter].items()}
            if not moments and int(folder.name):  # before the first step there are none
                raise ValueError(f"{folder}: no moments of {name}: remove it to go back to the checkpoint before it")
        wanted = {name: tuple(value.shape) for name, value in into.items()}
        wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        if wrong:
            said = [f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'wanted')}" for name in wrong[:3]]
            raise ValueError(f"{folder}: does not fit the run's settings: {'; '.join(said)}")
        checkpoints.read(folder, into)
        return checkpoints.step_of(folder)

    def _used(self) -> dict[str, Tensor]:
        return trained(self.average or self.network)

    def _empty(self, parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Room for a moment of a parameter, or for a counter beside it."""
        if shape == tuple(parameter.shape):
            return torch.zeros_like(parameter)
        return torch.zeros(shape, device=self.device if _fused_on(self.device) else "cpu")


def trained(network: Transformer) -> dict[str, Tensor]:
    """The parameters that are trained: all of them, or the adapters' alone."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}
