"""An 8B-shaped checkpoint is loaded within its own size and a tenth: slow, and it needs as much disk.

UNMASK_LARGE names a folder with 17 GB to spare (default: the temporary one). Random weights, written shard by shard.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unmask.families import LLADA, published_config
from unmask.families.mapping import to_published
from unmask.transformer import Transformer, TransformerConfig

EIGHT_B = TransformerConfig(
    vocab=126_464, layers=32, heads=32, width=4096, mlp=12_288, mask_id=126_336, rotary_base=5e5
)

LOAD = """
import resource, sys, torch, unmask
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = unmask.load(sys.argv[1])
with torch.no_grad():
    logits = model(torch.tensor([[1, 2, 126336]]), torch.tensor([2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(base * 1024, peak * 1024, bool(logits[0, :5].isfinite().all()), next(model.parameters()).dtype)
"""


def shards(config: TransformerConfig) -> Iterator[dict[str, Tensor]]:
    """Random weights of a published network in bfloat16, a few layers at a time."""
    with torch.device("meta"):
        blank = to_published(LLADA, Transformer(config, seed=None).state_dict(), config)
    names, generator = sorted(blank), torch.Generator().manual_seed(0)
    size = -(-len(names) // 8)
    for start in range(0, len(names), size):
        yield {
            name: torch.empty(blank[name].shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name in names[start : start + size]
        }


def write(folder: Path, config: TransformerConfig) -> int:
    """The folder as the hub has it; returns the bytes of its weights."""
    index, size = {}, 0
    for number, shard in enumerate(shards(config), 1):
        name = f"model-{number:05}.safetensors"
        save_file(shard, folder / name)
        index |= dict.fromkeys(shard, name)
        size += sum(2 * tensor.numel() for tensor in shard.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(published_config(LLADA, config)))
    return size


@pytest.mark.slow
def test_an_8b_checkpoint_loads_within_its_size_and_a_tenth(tmp_path_factory):
    """Measured on two server cores: see docs/checkpoints.md."""
    root = os.environ.get("UNMASK_LARGE")
    folder = Path(root) if root else tmp_path_factory.mktemp("large")
    room = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if room < 17e9:
        pytest.skip(f"{folder} has {room / 1e9:.1f} GB to spare, and 17 are needed: set UNMASK_LARGE")
    size = write(folder, EIGHT_B)
    assert size > 16e9
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=True)
    base, peak, finite, dtype = done.stdout.split()
    print(f"weights {size / 1e9:.2f} GB, peak {int(peak) / 1e9:.2f} GB, {int(base) / 1e9:.2f} GB before loading")
    assert finite == "True"
    assert dtype == "torch.bfloat16"
    assert int(peak) - int(base) < 1.1 * size
    for file in folder.glob("model*"):
        file.unlink()
