"""`unmask train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask import ranks
from unmask.log import console
from unmask.recipes import RECIPES, on_its_data
from unmask.train import TrainConfig, train

if TYPE_CHECKING:
    Recipe = TrainConfig
else:
    Recipe = tyro.extras.subcommand_type_from_defaults(
        {name: recipe() for name, recipe in RECIPES.items()},
        {name: recipe.__doc__ for name, recipe in RECIPES.items()},
    )


@dataclass(frozen=True)
class Train:
    """Train a recipe.

    `unmask train tiny`, and any field of it can be overridden: `unmask train tiny --batch 64 --steps 5000`, or its
    objective: `unmask train tiny lambda-dce`. Ctrl-C saves; the same command goes on from there.
    """

    recipe: Annotated[Recipe, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes]
    out: Path | None = None
    """Run folder (default runs/NAME)."""
    dry_run: bool = False
    """Say what it would cost, and stop."""

    def run(self) -> None:
        ranks.agreed(lambda: on_its_data(self.recipe) and None)  # one process prepares what is missing
        config = on_its_data(self.recipe)
        out = self.out or Path("runs") / config.name
        cost, size = config.cost(), config.network.parameters()
        console.print(
            f"{size['non_embedding']:,} non-embedding parameters, {cost['tokens']:,} tokens, "
            f"6ND = {cost['flops_6nd']:.2e} FLOPs, true count {cost['flops_true']:.2e}"
        )
        if self.dry_run:
            return
        train(config, out)
        console.print(f"next: unmask sample --checkpoint {out}")
