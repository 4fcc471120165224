"""Weights to begin training from: another run's, or those of a causal network whose attention is opened."""

from dataclasses import replace

import torch
from torch import Tensor

from unmask.checkpoint.model import Model
from unmask.data import Tokenizer
from unmask.families import Config
from unmask.transformer import TransformerConfig


def network_from(theirs: Config, ours: TransformerConfig) -> TransformerConfig:
    """The configuration of a run that begins as a network of `theirs`, of the kind of `ours`, and with its dropout.

    Raises ValueError for a network that is told the level, for one of another class than yours, where `ours` is of
    such a one, and for a bidirectional one where `ours` is causal or shifted and it is not.
    """
    if not isinstance(theirs, TransformerConfig):
        raise ValueError("a network that is told the level begins no other")
    if not isinstance(theirs, type(ours)):
        raise ValueError(f"a network of {type(theirs).__name__} begins none of {type(ours).__name__}")
    if ours.causal and not theirs.causal:
        raise ValueError("a bidirectional network begins no causal one")
    if theirs.causal and not ours.causal:
        theirs = replace(theirs, causal=False, shifted=ours.shifted, mask_id=ours.mask_id)
    if ours.shifted and not theirs.shifted:
        raise ValueError("--shifted is for a causal network that is opened: this one predicts in place")
    return replace(theirs, dropout=ours.dropout)


def same_tokenizer(name: str, donor: Model, tokenizer: Tokenizer) -> None:
    """Raises ValueError where a run's data have another tokenizer than the checkpoint that it begins as."""
    if donor.tokenizer.inner.to_str() != tokenizer.inner.to_str():
        remedy = f"prepare the data with its own, by unmask prepare --tokenizer {name}"
        raise ValueError(f"init {name}: another tokenizer than this run's: {remedy}")


def starting_from(donor: Model, network: TransformerConfig) -> dict[str, Tensor]:
    """The state_dict that a network of this configuration begins with.

    A masked diffusion model may begin as a causal one of its sizes (DiffuLLaMA, arXiv 2410.17891): every position
    sees all others, and the mask gets an embedding, the mean of all tokens', so that it says nothing yet. The causal
    network predicts each token from the state one to its left; `shifted` keeps it so, and without it the network has
    to learn to predict in place. Raises ValueError for a donor of other sizes (`network_from` has them).
    """
    if _sizes(network_from(donor.network.config, network)) != _sizes(network):
        raise ValueError("another network than this run's: take its sizes")
    state = dict(donor.network.state_dict())
    rows = state["embedding.weight"]
    if len(rows) < network.embedding_rows:
        state["embedding.weight"] = torch.cat([rows, rows.mean(0, keepdim=True)])
    return state


def _sizes(config: TransformerConfig) -> TransformerConfig:
    """With defaults written out, and without what weights do not depend on."""
    return replace(config, kv_heads=config.groups, mlp=config.mlp_width, mask_id=config.mask, dropout=0.0, neighbours=0)
