"""Checkpoints of a run: whole or not there, hashed, verified when they are read.

    run/checkpoints/00000500/   model.safetensors   the weights to use: the average where one is kept
                                state.safetensors   what else resuming needs; shard-*.safetensors where it is sharded
                                manifest.json       step, held-out nats a token, size and BLAKE2b of every file
                                config.json, tokenizer.json: a checkpoint can be loaded as a run can
    run/model.safetensors       the last checkpoint's
    run/best                    link to the checkpoint that did best on held-out text

A checkpoint is written under a hidden name, flushed to disk and renamed: at whatever moment a process ends, the last
checkpoint is there. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask import ranks
from unmask.checkpoint import CONFIG, MODEL, STATE, TOKENIZER
from unmask.checkpoint.runs import CHECKPOINTS, MANIFEST
from unmask.checkpoint.tensors import write_published
from unmask.data.pairs import CHAT_TEMPLATE
from unmask.files import Row, read_json, write_json
from unmask.log import console

BEST = "best"


def save(run: Path, step: int, fill: Callable[[Path], None], *, keep: int, nats: float | None = None) -> Path:
    """Write the checkpoint of a step, `fill` putting tensors into its folder in every process.

    The last `keep` stay, and the one with the lowest `nats` a token. Raises OSError where the disk does not take it.
    """
    final = run / CHECKPOINTS / f"{step:08d}"
    part = final.with_name(f".{final.name}")
    try:
        ranks.agreed(lambda: _begin(run, part))
        fill(part)
        ranks.wait()
        files = sorted(path.name for path in part.glob("*.safetensors"))
        hashes = ranks.gathered([_flushed(part / files[i]) for i in ranks.share(len(files))], len(files))
        manifest = {"step": step, "nats_per_token": nats, "files": dict(zip(files, hashes, strict=True))}
        ranks.agreed(lambda: _finish(part, final, manifest))
        ranks.agreed(lambda: _settle(run, keep))
    except ConnectionError:
        raise
    except OSError as error:
        if ranks.rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
        left = next((f"the last good one is {folder}" for folder in checkpoints(run)), "none was saved before")
        reason = error.strerror or error
        raise OSError(
            f"{final}: the checkpoint cannot be written ({reason}): make room, and the same command goes on; {left}"
        ) from None
    return final


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; what was not finished is none."""
    found = (run / CHECKPOINTS).glob("*")
    whole = [path for path in found if path.name.isdigit() and (path / MANIFEST).is_file()]
    return sorted(whole, key=lambda path: int(path.name), reverse=True)


def newest(run: Path) -> Path | None:
    """The last checkpoint that is whole, telling of damaged ones; what a killed process left is cleared away.

    Raises ValueError where there are checkpoints and none is whole.
    """
    if (run / STATE).exists():
        raise ValueError(f"{run}: a run of an older version, which this one cannot go on with: choose another folder")
    for left in (run / CHECKPOINTS).glob(".*"):
        shutil.rmtree(left, ignore_errors=True)
    damaged = []
    for folder in checkpoints(run):
        try:
            verify(folder)
        except (ValueError, OSError) as error:
            console.print(f"{error}; going back to the checkpoint before it")
            damaged.append(folder)
        else:
            for other in damaged:
                aside = other.with_name(f"damaged-{other.name}")
                shutil.rmtree(aside, ignore_errors=True)  # of the same step, at another time
                other.rename(aside)
            _expose(run)
            return folder
    if damaged:
        raise ValueError(f"{run / CHECKPOINTS}: no checkpoint is whole: remove {run} to begin anew")
    return None


def verify(folder: Path) -> Row:
    """The manifest of a checkpoint whose files are what it says. Raises ValueError for one that is damaged."""
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict) or MODEL not in files or type(manifest.get("step")) is not int:
        raise ValueError(f"{folder / MANIFEST}: not the manifest of a checkpoint")
    for name, wanted in files.items():
        path = folder / Path(name).name
        if not path.is_file() or _hashed(path) != wanted:
            raise ValueError(f"{path}: missing or damaged (not what {MANIFEST} says)")
    return manifest


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(read_json(folder / MANIFEST)["step"])


def best(run: Path) -> Path | None:
    """The checkpoint that did best on held-out text, of those that are there."""
    measured = []
    for folder in checkpoints(run):
        with suppress(ValueError, OSError):  # a damaged one is told of when a run goes back to it
            measured.append((read_json(folder / MANIFEST).get("nats_per_token"), folder))
    return min(((nats, folder) for nats, folder in measured if isinstance(nats, float)), default=(None, None))[1]


def contents(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a checkpoint; one in parts has the shape of its parts together."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                parts = json.loads((file.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
                for name in file.keys():  # noqa: SIM118
                    shape = file.get_slice(name).get_shape()
                    offset = parts[name]["saved_offsets"] if name in parts else [0] * len(shape)
                    ends = tuple(a + b for a, b in zip(shape, offset, strict=True))
                    shapes[name] = tuple(map(max, ends, shapes.get(name, ends)))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not part of a checkpoint ({error})") from None
    return shapes


def write(folder: Path, model: Mapping[str, Tensor], rest: Mapping[str, Tensor], *, sharded: bool) -> None:
    """Put the weights to use, whole, and the rest of the state into the folder; every process takes part.

    A sharded rest is written by torch.distributed.checkpoint, in its safetensors form: its usual metadata is a pickle.
    """
    weights = {name: _whole(value) for name, value in model.items()}
    ranks.agreed(lambda: write_published(folder / MODEL, weights))
    if not sharded:
        ranks.agreed(lambda: write_published(folder / STATE, rest))
        return
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as save_shards
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        save_shards(dict(rest), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # the same in every process
        raise OSError(next(str(cause) for cause, _ in error.failures.values())) from None


def read(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or sharded over any number of processes, in place with those of their names."""
    if (folder / STATE).exists() and not any(hasattr(value, "full_tensor") for value in into.values()):
        with torch.no_grad():
            for path in (folder / MODEL, folder / STATE):
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        into[name].copy_(file.get_tensor(name))
        return
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as is meant, in one process
        load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=ranks.world() == 1)


def _whole(value: Tensor) -> Tensor:
    """On the host and in one piece; a sharded tensor is fetched by all processes and kept by the first."""
    value = value.detach()
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()  # pyrefly: ignore
        return value.cpu() if ranks.rank() == 0 else value.new_empty(0)
    return value.cpu().contiguous()


def _begin(run: Path, part: Path) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in (CONFIG, TOKENIZER, CHAT_TEMPLATE):
        if (run / name).exists():  # the last is of a run on pairs
            link(run / name, part / name)


def _finish(part: Path, final: Path, manifest: Row) -> None:
    write_json(part / MANIFEST, manifest)
    _flush(part)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    _flush(final.parent)


def _settle(run: Path, keep: int) -> None:
    """Show the new models outside, then let go of the checkpoints that are not kept."""
    _expose(run)
    kept = {*checkpoints(run)[:keep], best(run)}
    for folder in checkpoints(run):
        if folder not in kept:
            gone = folder.with_name(f".{folder.name}")
            folder.rename(gone)  # at once no checkpoint any more
            shutil.rmtree(gone, ignore_errors=True)


def _expose(run: Path) -> None:
    link(checkpoints(run)[0] / MODEL, run / MODEL)
    finest = best(run)
    if finest is not None:
        beside = run / f".{BEST}"
        beside.unlink(missing_ok=True)
        with suppress(OSError):  # a disk without links has none of this one; `best` reads the manifests
            beside.symlink_to(finest.relative_to(run), target_is_directory=True)
            os.replace(beside, run / BEST)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, at once: a hard link, or a copy where the disk has none."""
    beside = target.with_name(f".{target.name}.link")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
    except OSError:
        shutil.copyfile(source, beside)
    os.replace(beside, target)
    beside.unlink(missing_ok=True)  # replacing a file by itself leaves both names


def _hashed(path: Path) -> Row:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def _flushed(path: Path) -> Row:
    """Its size and hash, once it is on the disk."""
    _flush(path)
    return _hashed(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
