"""`make test-kill`: a run is killed (SIGKILL) at random moments, saves included, and ends as one that never was.

Each life is forked from a process that has imported torch, so that most of its time is spent in steps and saves. After
every death the folder must hold a checkpoint that is whole, unless none was ever finished; at the end weights, moments,
average and logged losses equal an uninterrupted run's, bit for bit.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # which the first step of an optimiser imports: once here, not in every life
from safetensors.torch import load_file
from settings import prepared_words, small

from unmask.files import read_lines
from unmask.log import console
from unmask.train import checkpoints, train


def life(work: Callable[[], object], seconds: float | None) -> bool:
    """Whether a process that works for so long was killed before it ended, which it must do well."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, f"a life ended with {status}"
    return os.WIFSIGNALED(status)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    folder = checkpoints.checkpoints(run)[0]
    checkpoints.verify(folder)
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def losses(run: Path) -> list[dict]:
    rows = read_lines(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console.quiet = True
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        data = prepared_words(Path(folder))
        # a save every other step: about half of the time is spent saving
        changes = {"steps": 10 * options.kills, "ema": 0.9, "save_every": 2, "validate_every": 50}
        config = small(data, **changes, validation_sequences=4)
        kills = saves = steps = 0
        run, longest = Path(folder) / "killed", 0.6
        begun = time.monotonic()
        while kills < options.kills:
            killed = life(partial(train, config, run), rng.uniform(0, longest))
            assert killed, f"the run ended after {kills} kills: ask for fewer"
            kills, saves = kills + 1, saves + any((run / "checkpoints").glob(".*"))
            found = checkpoints.checkpoints(run) if run.exists() else []
            now = int(found[0].name) if found else 0
            assert now >= steps, f"step {now} after {steps}: a checkpoint was lost"
            # lives long enough to get on, short enough not to come to the end
            longest = min(30.0, longest * 1.3) if now == steps else max(0.2, longest * 0.9)
            steps = now
        print(
            f"{kills} kills, {saves} amid a save, at step {steps} of {config.steps}, {time.monotonic() - begun:.0f} s"
        )
        config = small(data, **{**changes, "steps": config.steps}, validation_sequences=4)
        assert not life(partial(train, config, run), None)
        assert not life(partial(train, config, Path(folder) / "whole"), None)
        left, right = tensors(run), tensors(Path(folder) / "whole")
        assert left.keys() == right.keys()
        differing = [name for name in left if not torch.equal(left[name], right[name])]
        assert not differing, f"differ from the uninterrupted run: {differing}"
        assert losses(run) == losses(Path(folder) / "whole")
        print(f"{len(left)} tensors and {len(losses(run))} rows equal an uninterrupted run's, bit for bit")


if __name__ == "__main__":
    main()
