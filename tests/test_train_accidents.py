"""What befalls a run: two at once, a full disk, damage, a clock that jumps, processes that die."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file
from settings import prepared_words, small

from unmask.checkpoint import load
from unmask.cli import main
from unmask.files import read_lines
from unmask.log import Metrics
from unmask.train import checkpoints, train
from unmask.train.loop import _Run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepared_words(tmp_path_factory.mktemp("words"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def same(a: Path, b: Path) -> bool:
    left, right = (tensors(checkpoints.checkpoints(run)[0]) for run in (a, b))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_last_and_the_best_are_kept(data, tmp_path, monkeypatch):
    """Of eight checkpoints two stay and the one with the lowest held-out loss; each can be loaded, and is its link."""
    values = iter([5.0, 3.0, 2.5, 4.0, 2.6, 4.5, 4.6, 4.7])

    def measured(self) -> None:
        self.measured = self.step, next(values)

    monkeypatch.setattr(_Run, "validate", measured)
    run = train(small(data, steps=8, save_every=1, ema=0.5), tmp_path / "run")
    assert names(run) == ["00000003", "00000007", "00000008"]
    assert (run / "best").resolve().name == "00000003"
    for folder in (run, run / "best", run / "checkpoints" / "00000007"):
        load(folder)
    last = tensors(run / "checkpoints" / "00000008")
    for name, value in load_file(run / "model.safetensors").items():
        assert torch.equal(value, last[name])
    assert not torch.equal(last["output.weight"], load_file(run / "best" / "model.safetensors")["output.weight"])


def test_a_second_process_is_refused_and_a_dead_one_lets_go(data, tmp_path):
    """The lock is the operating system's: held while its process lives, whatever that leaves behind."""
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as held:
        held.write("process 7 on elsewhere")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="already being trained by process 7 on elsewhere: wait for it"):
            train(small(data, steps=1), tmp_path / "run")
    train(small(data, steps=1), tmp_path / "run")


@pytest.mark.parametrize("where", ["state.safetensors", "manifest.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_passed_over(data, tmp_path, capsys, where):
    """The hash tells; the run goes on from the one before and ends as it would have; the damaged one is kept aside."""
    config = small(data, steps=6, save_every=2)
    train(config, tmp_path / "whole")
    run = tmp_path / "run"
    processes.stopped_training(str(run), 4, {"data": str(data), "steps": 6, "save_every": 2})
    path = run / "checkpoints" / "00000004" / where
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.unlink()  # the model outside is the same file
    path.write_bytes(damaged)
    train(config, run)
    assert same(tmp_path / "whole", run)
    assert "damaged-00000004" in names(run)
    assert "going back to the checkpoint before it" in capsys.readouterr().err


def test_damage_of_every_kind_is_passed_over_again_and_again(data, tmp_path, monkeypatch):
    """The same step twice, an older manifest that is empty, a disk that does not read."""
    config, hashed = small(data, steps=6, save_every=2, keep=3), checkpoints._hashed
    run = train(config, tmp_path / "run")
    place = run / "checkpoints"
    for _ in range(2):
        (place / "00000006" / "state.safetensors").unlink()
        train(config, run)
    assert names(run) == ["00000002", "00000004", "00000006", "damaged-00000006"]
    (place / "00000002" / "manifest.json").write_bytes(b"")

    def unread(path: Path) -> dict:
        if path.parent.name == "00000006":
            raise OSError(errno.EIO, "Input/output error")
        return hashed(path)

    monkeypatch.setattr(checkpoints, "_hashed", unread)
    newest = checkpoints.newest(run)
    assert newest is not None
    assert newest.name == "00000004"


def test_a_disk_without_links(data, tmp_path, monkeypatch):
    """Runs are saved and go on; the best one is found by its manifest."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(os, "link", refuse)
    run = train(small(data, steps=4, save_every=2, validate_every=2), tmp_path / "run")
    assert checkpoints.newest(run) == run / "checkpoints" / "00000004"
    assert checkpoints.best(run) in checkpoints.checkpoints(run)
    assert not (run / "best").is_symlink()


def test_no_whole_checkpoint_is_no_fresh_start(data, tmp_path):
    """A run whose checkpoints are all damaged is not silently begun anew."""
    run = train(small(data, steps=2), tmp_path / "run")
    (run / "checkpoints" / "00000002" / "state.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint is whole"):
        train(small(data, steps=2), run)
    assert names(run) == ["00000002"]


def test_a_foreign_checkpoint_is_one_line(data, tmp_path):
    """Tensors of another network, in a checkpoint whose hashes are right."""
    run = train(small(data, steps=2), tmp_path / "run")
    other = train(small(data, steps=2, layers=2), tmp_path / "other")
    for name in ("model.safetensors", "state.safetensors", "manifest.json"):
        path = run / "checkpoints" / "00000002" / name
        path.unlink()
        path.write_bytes((other / "checkpoints" / "00000002" / name).read_bytes())
    with pytest.raises(ValueError, match=r"does not fit the run's settings: blocks\.1\..* is \(.*\), not wanted"):
        train(small(data, steps=2), run)


def test_a_full_disk_leaves_the_last_checkpoint(data, tmp_path):
    """The system refuses to write on, amid a file: one line, exit code 2, nothing half-written, and the run goes on."""
    script = (
        "import resource, sys; sys.path.insert(0, 'tests'); from pathlib import Path; from settings import small\n"
        "from unmask.cli import main; import unmask.cli.train as command; from unmask.train import train, loop\n"
        "save = loop._Run.save\n"
        "def full(self):\n"
        "    if self.step == 4: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "    save(self)\n"
        "loop._Run.save = full\n"
        "from unmask.log import complain\n"
        "try: train(small(Path(sys.argv[1]), steps=6, save_every=2), Path(sys.argv[2]))\n"
        "except (ValueError, OSError) as error: complain(error); sys.exit(2)\n"
    )
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", script, data, run], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "00000004: the checkpoint cannot be written (" in done.stderr
    assert "the last good one is" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(run) == ["00000002"]
    train(small(data, steps=6, save_every=2), tmp_path / "whole")
    train(small(data, steps=6, save_every=2), run)
    assert same(tmp_path / "whole", run)


def test_metrics_on_a_full_disk(tmp_path):
    """One line that names the file; the torn row is left out when the run goes on."""
    metrics = Metrics(tmp_path / "metrics.jsonl", 0)
    metrics.write({"kind": "train", "step": 1})
    whole = metrics._file

    class Full:
        def write(self, line: bytes) -> int:
            whole.write(line[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    metrics._file = Full()
    with pytest.raises(OSError, match=r"metrics\.jsonl: No space left on device: make room"):
        metrics.write({"kind": "train", "step": 2})
    whole.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [{"kind": "train", "step": 1}]


@pytest.mark.parametrize("line", ["5", "[1]", '{"kind": "train"}', '{"step": null}', "[" * 100_000])
def test_a_line_of_metrics_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*; remove the line to go on"):
        Metrics(path, 1)


def test_a_run_goes_on_in_its_precision(data, tmp_path):
    train(small(data, steps=1, precision="float32"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"run: holds a run .*\(precision float32 there, bfloat16 here\)"):
        train(small(data, steps=1, precision="bfloat16"), tmp_path / "run")
    train(small(data, steps=1), tmp_path / "run")


def test_a_clock_that_jumps(data, tmp_path, monkeypatch):
    """Seconds of a run only grow, whatever the wall clock says, and over a restart too."""
    jumps = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    processes.stopped_training(str(tmp_path / "run"), 10, {"data": str(data)})
    train(small(data), tmp_path / "run")
    seconds = [row["seconds"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < 1000


def test_what_a_killed_save_left_is_cleared_away(data, tmp_path):
    """A half-written checkpoint under its hidden name is no checkpoint, and goes."""
    run = train(small(data, steps=2), tmp_path / "run")
    half = run / "checkpoints" / ".00000004"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    train(small(data, steps=2), run)
    assert names(run) == ["00000002"]


def test_a_killed_process_ends_the_job_which_goes_on(data, tmp_path):
    """torchrun, two processes, one killed: the job ends with a line that says so, and the same command finishes it."""
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = ["train", "tiny", "--data", str(data), "--out", str(run), "--device", "cpu", "--precision", "float32"]
    command += ["--layers", "1", "--heads", "2", "--width", "32", "--length", "32", "--batch", "8"]
    command += ["--validate-every", "1000", "--save-every", "5", "--steps", "40"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*torchrun, "-m", "unmask", *command], stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not checkpoints.checkpoints(run):
        time.sleep(0.02)
    os.kill(int((run / ".lock").read_text().split()[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    # either the other process finds the first one gone, or torchrun ends it before that and says what was killed
    assert "another process of the job is gone" in err or "Signal 9 (SIGKILL)" in err, err
    assert err.count("non-embedding parameters") == 1  # the first process alone speaks
    assert int(checkpoints.checkpoints(run)[0].name) < 40
    main(command)  # alone
    steps = [row["step"] for row in read_lines(run / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == list(range(1, 41))


OTHERS_OWN = """
import unmask.cli
from unmask import ranks

def failing(name, words):
    ranks.wait()
    if ranks.rank() == 1:
        raise OSError("the reason of one process")
    ranks.wait()

unmask.cli._run = failing
unmask.cli.main(["train"])
"""


def test_a_process_that_fails_alone_says_why(tmp_path):
    """Before it leaves the job: the others then find it gone, and torchrun ends them all."""
    (tmp_path / "script.py").write_text(OTHERS_OWN, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode != 0
    assert "error: the reason of one process" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "said", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "x", "RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "0"}]
)
def test_a_command_that_is_not_shared_joins_nothing(said, monkeypatch, capsys):
    """Where a job's variables are set by whoever started the shell."""
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    main(["--version"])
    with pytest.raises(SystemExit, match="0"):
        main(["recipes", "--help"])
    assert "unmask" in capsys.readouterr().out


def test_a_mirror_follows_and_fills_an_empty_folder(data, tmp_path):
    """On an fsspec filesystem: the same checkpoints, whole; a run whose disk is gone goes on from there, bitwise."""
    url = f"file://{tmp_path / 'mirror'}"
    settings = {"save_every": 2, "keep": 1, "validate_every": 100}
    config = small(data, steps=8, mirror=url, **settings)
    train(config, tmp_path / "whole")
    mirror = tmp_path / "mirror"
    assert {path.name for path in mirror.iterdir()} == {"checkpoints", "config.json", "tokenizer.json", "metrics.jsonl"}
    assert names(mirror) == names(tmp_path / "whole")
    for path in (mirror / "checkpoints").iterdir():
        checkpoints.verify(path)
    load(mirror / "checkpoints" / "00000008")

    other = f"file://{tmp_path / 'other'}"
    options = {"data": str(data), "steps": 8, "mirror": other, **settings}
    processes.stopped_training(str(tmp_path / "lost"), 4, options)
    train(small(data, steps=8, mirror=other, **settings), tmp_path / "new")
    assert same(tmp_path / "whole", tmp_path / "new")
    steps = [row["step"] for row in read_lines(tmp_path / "new" / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == list(range(1, 9))


def test_the_mirror_of_another_run_is_left_alone(data, tmp_path):
    """Planted fault: nothing compared the two, and the other run's checkpoints were deleted at the first save."""
    url, mirror = f"file://{tmp_path / 'mirror'}", tmp_path / "mirror"
    train(small(data, steps=2, mirror=url), tmp_path / "one")
    before = {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()}
    two = train(small(data, steps=2, seed=5), tmp_path / "two")
    with pytest.raises(ValueError, match=r"mirror .*: holds a run with other settings \(seed 0 there, 5 here\)"):
        train(small(data, steps=2, seed=5, mirror=url), two)
    assert {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()} == before


def test_the_mirror_of_another_run_fills_no_folder(data, tmp_path):
    """Planted fault: the new folder was filled with the other run first, and the error blamed the folder."""
    url = f"file://{tmp_path / 'mirror'}"
    train(small(data, steps=1, mirror=url), tmp_path / "one")
    with pytest.raises(ValueError, match=r"^mirror .*: holds a run with other settings \(seed 0 there, 5 here\)"):
        train(small(data, steps=1, seed=5, mirror=url), tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_a_folder_that_is_no_run_is_left_alone(data, tmp_path):
    """Planted fault: weights without a config.json were replaced, and runs began among texts and in their data."""
    url, theirs = f"file://{tmp_path / 'mirror'}", tmp_path / "theirs"
    train(small(data, steps=1, mirror=url), tmp_path / "one")
    shutil.copytree(data, tmp_path / "data")
    theirs.mkdir()
    (theirs / "model.safetensors").write_bytes(b"theirs")
    for folder in (theirs, tmp_path / "data"):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for mirror in (None, url):
            with pytest.raises(ValueError, match=r"holds something else: choose another folder \(--out\) or"):
                train(small(data, steps=1, mirror=mirror), folder)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    killed = tmp_path / "killed"  # before there was a config.json
    killed.mkdir()
    for name in (".lock", ".config.json.x1"):
        (killed / name).touch()
    train(small(data, steps=1), killed)


def test_a_mirror_keeps_what_is_ahead_of_the_run(data, tmp_path):
    """Another machine went on from here."""
    url = f"file://{tmp_path / 'mirror'}"
    options = {"data": str(data), "steps": 8, "save_every": 2, "keep": 1, "validate_every": 100}
    processes.stopped_training(str(tmp_path / "run"), 2, dict(options))
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere", symlinks=True)
    processes.stopped_training(str(tmp_path / "elsewhere"), 6, {**options, "mirror": url})
    processes.stopped_training(str(tmp_path / "run"), 4, {**options, "mirror": url})
    assert names(tmp_path / "mirror") == ["00000004", "00000006"]


def test_a_mirror_that_fails_does_not_stop_a_run(data, tmp_path, monkeypatch, capsys):
    """A line at each save; an address that nothing serves is refused at once."""
    from unmask.train.mirror import Mirror

    def gone(self, run: Path) -> None:
        raise RuntimeError("no route to the bucket")

    monkeypatch.setattr(Mirror, "follow", gone)
    train(small(data, steps=2, save_every=1, mirror="memory://runs/tiny"), tmp_path / "run")
    assert capsys.readouterr().err.count("no route to the bucket: tried again") == 2
    with pytest.raises(ValueError, match="mirror nosuch://x"):
        train(small(data, steps=2, mirror="nosuch://x"), tmp_path / "none")


def test_a_truncated_mirror_is_not_taken(data, tmp_path, capsys):
    train(small(data, steps=2, mirror=f"file://{tmp_path / 'mirror'}"), tmp_path / "run")
    path = tmp_path / "mirror" / "checkpoints" / "00000002" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"mirror .*: no checkpoint there is whole"):
        train(small(data, steps=2, mirror=f"file://{tmp_path / 'mirror'}"), tmp_path / "new")
    assert "left out" in capsys.readouterr().err


def test_a_mirror_gives_back_all_that_a_run_kept(data, tmp_path, capsys):
    """Planted faults: only the newest came back, the others, the best among them, were then deleted there as well; and
    a damaged newest one kept the whole ones before it from coming back.
    """
    url, mirror = f"file://{tmp_path / 'mirror'}", tmp_path / "mirror"
    options = {"data": str(data), "steps": 8, "save_every": 1, "keep": 2, "validate_every": 1, "mirror": url}
    processes.stopped_training(str(tmp_path / "run"), 4, dict(options))
    manifest = mirror / "checkpoints" / "00000003" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "nats_per_token": 0.5}))  # the best by far
    weights = mirror / "checkpoints" / "00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    half = mirror / "checkpoints" / "00000001"  # of an upload that was cut off
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"...")
    processes.stopped_training(str(tmp_path / "new"), 6, dict(options))
    assert names(tmp_path / "new") == names(mirror) == ["00000003", "00000005", "00000006"]
    assert (tmp_path / "new" / "best").resolve().name == "00000003"
    assert not half.exists()


def test_a_mirror_that_cannot_be_read_is_told_of_in_a_line(data, tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def gone(self, path: str, **_: object) -> bool:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(MemoryFileSystem, "exists", gone)
    monkeypatch.setattr(MemoryFileSystem, "glob", gone)
    with pytest.raises(ValueError, match=r"mirror .* cannot be read \(RuntimeError: no credentials\)"):
        train(small(data, steps=1, mirror="memory://runs/gone"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mirrored_run_needs_no_longer_what_it_began_as(data, tmp_path, capsys):
    first, second, mirror = tmp_path / "first", tmp_path / "second", f"file://{tmp_path / 'mirror'}"
    train(small(data, steps=1), first)
    words = ["train", "tiny", "--data", str(data), "--init", str(first), "--mirror", mirror, "--out", str(second)]
    words += ["--steps", "2", "--batch", "2", "--length", "8"]
    main(words)
    shutil.rmtree(first)
    shutil.rmtree(second)
    main(words)
    assert "2 steps done" in " ".join(capsys.readouterr().err.split())


def test_a_tracker_gets_the_rows(data, tmp_path, monkeypatch):
    """Any module called as trackio and wandb are; one that is not installed is one line."""
    told: list = []

    class Fake:
        init = staticmethod(lambda **options: told.append(options))
        log = staticmethod(lambda numbers, step: told.append((step, numbers)))
        finish = staticmethod(lambda: told.append("finished"))

    monkeypatch.setitem(sys.modules, "trackio", Fake)
    train(small(data, steps=2, validate_every=2, track="trackio"), tmp_path / "run")
    assert told[0]["config"]["steps"] == 2
    assert [step for step, _ in told[1:-1]] == [1, 2, 2]
    assert told[1][1]["train/loss"] > 0
    assert told[3][1]["validation/nats_per_token"] > 0
    assert told[-1] == "finished"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="track wandb: not installed: pip install wandb"):
        train(small(data, steps=2, track="wandb"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_tensorboard_lies_in_the_run_folder_and_forgets_what_was_lost(data, tmp_path, monkeypatch):
    told = []

    class Fake:
        @staticmethod
        def SummaryWriter(folder, purge_step):
            told.append((folder, purge_step))
            return Fake

        add_scalar = staticmethod(lambda name, value, step: told.append((name, step)))
        close = staticmethod(lambda: told.append("closed"))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Fake)
    out, config = tmp_path / "run", small(data, steps=2, validate_every=2, save_every=1, track="tensorboard")
    train(config, out)
    assert told[0] == (str(out), 1)
    assert ("train/loss", 2) in told
    assert ("validation/nats_per_token", 2) in told
    assert told[-1] == "closed"
    shutil.rmtree(checkpoints.checkpoints(out)[0])
    told.clear()
    train(config, out)
    assert told[0] == (str(out), 2)
    assert ("train/loss", 2) in told
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="track tensorboard: not installed: pip install tensorboard"):
        train(small(data, steps=2, track="tensorboard"), tmp_path / "other")
