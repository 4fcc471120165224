"""Checkpoints: run folders of ours, published ones in and out, and the hub they come from.

load("runs/tiny"), load("hf://GSAI-ML/LLaDA-8B-Base", dtype=torch.bfloat16), load("mdm-170M-100e18.safetensors")
"""

from unmask.checkpoint.adapting import ADAPTERS, described
from unmask.checkpoint.loading import Told, load
from unmask.checkpoint.model import Model, device_of
from unmask.checkpoint.publishing import convert, push
from unmask.checkpoint.runs import (
    CONFIG,
    MODEL,
    STATE,
    TOKENIZER,
    assign,
    describe,
    network_config,
    network_kind,
)
from unmask.checkpoint.starting import network_from, same_tokenizer, starting_from

__all__ = [
    "ADAPTERS",
    "CONFIG",
    "MODEL",
    "STATE",
    "TOKENIZER",
    "Model",
    "Told",
    "assign",
    "convert",
    "describe",
    "described",
    "device_of",
    "load",
    "network_config",
    "network_from",
    "network_kind",
    "push",
    "same_tokenizer",
    "starting_from",
]
