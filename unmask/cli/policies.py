"""Policies as subcommands; the help of each ends with what its samples follow."""

import inspect
from typing import TYPE_CHECKING, Annotated, Union, get_args

import tyro

from unmask.sampling import AdaptivePolicy, Blocks, Planned, Rated, Remasking, Speculative

if TYPE_CHECKING:
    Chosen = Planned | AdaptivePolicy | Remasking | Rated | Blocks | Speculative
else:

    def _with_its_law(policy):
        """A policy whose help ends with what its samples follow."""
        text = f"{inspect.getdoc(policy)}\n\nSamples follow: {policy().exact_for}."
        return Annotated[policy, tyro.conf.subcommand(description=text)]

    kinds = get_args(Planned | AdaptivePolicy | Remasking | Rated | Blocks | Speculative)
    Chosen = Union[tuple(map(_with_its_law, kinds))]  # noqa: UP007
