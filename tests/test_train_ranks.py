"""Several processes train, score and write what one would have: gloo on the host, DDP and FSDP2."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import processes
import pytest
import torch
import torch.distributed.checkpoint
from settings import prepared_words, small

from unmask.checkpoint import load
from unmask.files import read_lines
from unmask.train import Optimiser, checkpoints, train

STEPS = 12
WAYS = [(2, 2, "ddp"), (2, 2, "fsdp"), (4, 1, "ddp"), (4, 1, "fsdp")]
COMMON = {"steps": STEPS, "ema": 0.9, "layers": 2, "save_every": 4, "validate_every": 6, "validation_sequences": 7}
COMMON |= {"documents_apart": True}  # the network is asked through its wrapper


pytestmark = pytest.mark.skipif(
    not hasattr(torch.distributed.checkpoint, "HuggingFaceStorageWriter"), reason="this torch saves no FSDP2 state"
)
MUON = Optimiser(rate=1e-2, warmup=5, muon=hasattr(torch.optim, "Muon"))


def rows(folder: Path, kind: str) -> list[dict]:
    return [row for row in read_lines(folder / "metrics.jsonl") if row["kind"] == kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, list]:
    """Every run of this file, and what the processes said."""
    folder = tmp_path_factory.mktemp("ranks")
    data = prepared_words(folder)
    common = {**COMMON, "data": str(data)}
    train(small(data, **COMMON, accumulate=4), folder / "one")
    train(small(data, **{**COMMON, "steps": 2}), folder / "model")
    jobs = []
    for world in (2, 4):
        work = [
            ["training", str(folder / f"{world}-{parallel}"), {**common, "accumulate": parts, "parallel": parallel}]
            for of, parts, parallel in WAYS
            if of == world
        ]
        jobs.append({"world": world, "work": work})
    cut = {**common, "parallel": "fsdp"}
    jobs[0]["work"] += [
        ["stopped_training", str(folder / f"cut-{i}"), 4, {**cut, "accumulate": 2}] for i in ("4", "1", "ddp")
    ]
    narrow = {"steps": 4, "precision": "bfloat16", "recompute": True, "save_every": 4, "layers": 2, "data": str(data)}
    train(small(**{**narrow, "data": data, "accumulate": 4}), folder / "narrow-1")
    jobs[0]["work"].append(["training", str(folder / "narrow-2"), {**narrow, "accumulate": 2, "parallel": "fsdp"}])
    muon = {"steps": STEPS, "layers": 2, "optimiser": MUON}
    train(small(data, **muon, accumulate=2), folder / "muon-1")
    jobs[0]["work"].append(["training", str(folder / "muon-2"), {**muon, "optimiser": asdict(MUON), "data": str(data)}])
    adapters = {"steps": STEPS, "layers": 2, "init": str(folder / "model"), "lora": 3}
    train(small(data, **adapters, accumulate=2), folder / "lora-1")
    for way in ("ddp", "fsdp"):
        work = {**adapters, "data": str(data), "parallel": way}
        jobs[0]["work"].append(["training", str(folder / f"lora-{way}"), work])
    jobs[1]["work"] += [
        ["training", str(folder / "cut-4"), {**cut, "accumulate": 1}],
        ["training", str(folder / "cut-ddp"), {**cut, "accumulate": 1, "parallel": "ddp"}],
        ["collectives"],
        ["likelihood", str(folder / "model"), 5],
        ["texts", str(folder / "model"), 5],
        ["likelihood", str(folder / "model"), 2],
        ["answers", str(folder / "model"), str(folder / "answers.jsonl")],
    ]
    return folder, processes.run(jobs)


@pytest.mark.parametrize(("world", "parts", "parallel"), WAYS)
def test_several_processes_train_as_one_does(runs, world, parts, parallel):
    """Losses, gradient norms, held-out estimates and final weights equal one process with accumulation."""
    folder, _ = runs
    for kind, names in (("train", ("loss", "grad_norm", "lr")), ("validation", ("nats_per_token", "stderr"))):
        one, many = rows(folder / "one", kind), rows(folder / f"{world}-{parallel}", kind)
        assert [row["step"] for row in one] == [row["step"] for row in many]
        for name in names:
            assert [row[name] for row in many] == pytest.approx([row[name] for row in one], rel=2e-5), name
    assert rows(folder / "one", "train")[0]["loss"] > rows(folder / "one", "train")[-1]["loss"] + 0.5
    left, right = (load(folder / name).network.state_dict() for name in ("one", f"{world}-{parallel}"))
    for name in left:
        assert torch.allclose(left[name], right[name], atol=2e-4), name


def test_another_seed_is_told_apart(runs, tmp_path):
    """The comparison above can fail: other masks of the same rows give other losses."""
    folder, _ = runs
    train(small(folder / "data", **{**COMMON, "steps": 2}, seed=1), tmp_path / "other")
    ours, theirs = (rows(at, "train")[1]["loss"] for at in (folder / "one", tmp_path / "other"))
    assert ours != pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("how", ["4", "ddp", "1"])
def test_a_sharded_run_goes_on_in_another_number_of_processes(runs, how):
    """Saved by two processes with FSDP2, gone on with by four, by four with DDP, by one alone: one trajectory."""
    folder, _ = runs
    run = folder / f"cut-{how}"
    if how == "1":
        shards = list((run / "checkpoints" / "00000004").glob("shard-*.safetensors"))
        assert len(shards) == 2
        train(small(folder / "data", **COMMON, accumulate=4), run)
    one, many = rows(folder / "one", "train"), rows(run, "train")
    assert [row["loss"] for row in many] == pytest.approx([row["loss"] for row in one], rel=2e-5)
    left, right = (load(at).network.state_dict() for at in (folder / "one", run))
    for name in left:
        assert torch.allclose(left[name], right[name], atol=2e-4), name


def test_bfloat16_and_recomputation_when_sharded(runs):
    """Weights that travel in bfloat16 give the losses of one process under autocast, to bfloat16's rounding."""
    folder, _ = runs
    one, many = (rows(folder / f"narrow-{world}", "train") for world in (1, 2))
    assert [row["loss"] for row in many] == pytest.approx([row["loss"] for row in one], rel=2e-3)
    assert [row["grad_norm"] for row in many] == pytest.approx([row["grad_norm"] for row in one], rel=2e-2)


def test_two_processes_take_one_step_of_muon(runs):
    """Both have the whole gradient, and so the same step, to the rounding of its iterations in bfloat16."""
    folder, _ = runs
    one, many = (rows(folder / f"muon-{world}", "train") for world in (1, 2))
    assert [row["loss"] for row in many] == pytest.approx([row["loss"] for row in one], rel=2e-4)
    left, right = (load(folder / f"muon-{world}").network.state_dict() for world in (1, 2))
    for name in left:
        assert torch.allclose(left[name], right[name], atol=2e-3), name


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_train_one_runs_adapters(runs, way):
    """With the weights whole or sharded; what each saves is loaded merged."""
    folder, _ = runs
    one, many = (rows(folder / f"lora-{which}", "train") for which in (1, way))
    assert [row["loss"] for row in many] == pytest.approx([row["loss"] for row in one], rel=2e-5)
    left, right = (load(folder / f"lora-{which}").network.state_dict() for which in (1, way))
    for name in left:
        assert torch.allclose(left[name], right[name], atol=2e-4), name


def test_a_sharded_checkpoint_holds_no_pickle(runs):
    folder, _ = runs
    checkpoint = checkpoints.checkpoints(folder / "2-fsdp")[0]
    names = {path.name.split("-")[0] for path in checkpoint.iterdir()}
    assert names == {"config.json", "tokenizer.json", "manifest.json", "model.safetensors", "shard"}
    checkpoints.verify(checkpoint)


def test_processes_agree_and_gather(runs):
    """Pieces come back in order, numbers add up, and an error of the first is everyone's."""
    _, said = runs
    whole, total, largest, refused = said[1][4]
    assert whole == [{"piece": i, "x": 1 / 3} for i in range(5)]
    assert total == [6, 4]
    assert largest == 3
    assert "invalid literal" in refused


def test_scored_and_written_by_four_as_by_one(runs):
    """Each process a share: the same estimate, both errors included, and the same texts; also with idle processes."""
    folder, said = runs
    for result, count in ((said[1][5], 5), (said[1][7], 2)):
        alone = processes.likelihood(str(folder / "model"), count)
        assert result.keys() == alone.keys()
        for name, value in alone.items():
            if isinstance(value, float) and not math.isnan(value):
                assert result[name] == pytest.approx(value, rel=1e-6), name
        assert result["evaluations"] == alone["evaluations"]
        assert torch.allclose(torch.tensor(result["replicates"]), torch.tensor(alone["replicates"]), rtol=1e-5)
    alone = json.loads(json.dumps(processes.texts(str(folder / "model"), 5)))
    assert [record["text"] for record in said[1][6]] == [record["text"] for record in alone]
    assert [record["step"] for record in said[1][6]] == [record["step"] for record in alone]
    assert said[1][8] == processes.answers(str(folder / "model"), str(folder / "alone.jsonl"))
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 5
