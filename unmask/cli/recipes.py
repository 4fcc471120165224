"""`unmask recipes`."""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from unmask.checkpoint import device_of
from unmask.files import Row
from unmask.log import console, say
from unmask.recipes import RECIPES
from unmask.train import TrainConfig
from unmask.train.budget import measured_rate, memory
from unmask.train.precision import best_precision
from unmask.units import duration


@dataclass(frozen=True)
class Recipes:
    """What each recipe is and would cost here, before anything starts.

    The time is its true FLOPs over a rate that a few steps of a small network reach on this machine, in two seconds:
    `unmask recipes --json | jq 'select(.seconds < 3600)'`
    """

    device: str = "auto"
    """Measured here: cpu, cuda, cuda:1 or mps; auto takes the first GPU there is."""
    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        rate = rate_here(self.device)
        records: list[Row] = [{"recipe": name, **row(recipe(), rate)} for name, recipe in RECIPES.items()]
        if self.json:
            for record in records:
                say(record)
            return
        title = f"{device_of(self.device)}: {rate / 1e9:,.0f} GFLOP/s measured in a small network's steps"
        names = ("recipe", "parameters", "N", "tokens", "6ND", "true FLOPs", "memory", "time here")
        table = Table(*names, title=title, title_justify="left")
        for record in records:
            table.add_row(
                record["recipe"],
                f"{record['parameters'] / 1e6:,.1f} M",
                f"{record['non_embedding'] / 1e6:,.1f} M",
                f"{record['tokens'] / 1e9:,.3f} G",
                f"{record['flops_6nd']:.1e}",
                f"{record['flops_true']:.1e}",
                f"{(record['memory_state'] + record['memory_activations']) / 2**30:,.1f} GiB",
                duration(record["seconds"]),
            )
        Console(width=max(110, Console().width)).print(table)
        console.print("memory: weights, gradients, moments, average and one part of a step's activations, in float32")


def rate_here(device: str) -> float:
    """FLOPs a second of a training step, measured."""
    found = torch.device(device_of(device))
    return measured_rate(found, best_precision(found))


def row(config: TrainConfig, rate: float) -> Row:
    """A run's sizes, cost, memory in bytes and seconds at `rate` FLOPs a second."""
    size, cost = config.network.parameters(), config.cost()
    return {
        "parameters": size["total"],
        "non_embedding": size["non_embedding"],
        **cost,
        **{f"memory_{kind}": value for kind, value in memory(config).items()},
        "seconds": cost["flops_true"] / rate,
    }
