"""The trainer: exact resume, accumulation, the average, precision, and what stops a run."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file
from settings import prepared_words, small

from unmask import cpu
from unmask.checkpoint import convert, load
from unmask.corruption import stratified
from unmask.data import Packed, Tokenizer, batch_indices, load_split, prepare
from unmask.draws import keyed_generator
from unmask.files import read_json, read_lines, write_json
from unmask.objectives import AnyOrder, LambdaDCE, NextToken, TimeDSE
from unmask.train import Optimiser, checkpoints, expected_level, precision, train
from unmask.train.budget import memory, saved
from unmask.train.config import spent
from unmask.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepared_words(tmp_path_factory.mktemp("words"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: the weights to use, and the rest of the state."""
    last = sorted((folder / "checkpoints").glob("[0-9]*"))[-1]
    return {name: value for path in last.glob("*.safetensors") for name, value in load_file(path).items()}


def last(folder: Path) -> int:
    return int(checkpoints.checkpoints(folder)[0].name)


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Cut(Exception):
    """A crash, right after a save."""


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resume_is_bitwise(data, tmp_path, monkeypatch, causal, precision):
    """20 steps equal 10, a crash, and 10 more: weights, moments, average and the logged losses; dropout included."""
    config = small(data, causal=causal, precision=precision, ema=0.9)
    train(config, tmp_path / "whole")

    from unmask.train.loop import _Run

    save = _Run.save

    def crash(self) -> None:
        save(self)
        if self.step == 10:
            raise Cut

    monkeypatch.setattr(_Run, "save", crash)
    with pytest.raises(Cut):
        train(config, tmp_path / "cut")
    monkeypatch.undo()
    train(config, tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0] if row["kind"] == "train"] == list(range(1, 21))


def test_another_seed_gives_another_run(data, tmp_path):
    """The bitwise test above can fail."""
    for seed in (0, 1):
        train(small(data, seed=seed, steps=2), tmp_path / str(seed))
    assert not same(tmp_path / "0", tmp_path / "1")


def test_whoever_reads_a_folder_reads_a_run_in_it(data, tmp_path):
    """Every file has the rights of any new one: safetensors' own are for their owner alone."""
    (tmp_path / "plain").write_text("", encoding="utf-8")
    folder = train(small(data, steps=2), tmp_path / "run")
    convert(folder, tmp_path / "converted", "smdm")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) >= 4
    assert len({path.stat().st_mode for path in files}) == 1


def test_rows_lost_in_a_crash_are_dropped(data, tmp_path):
    """metrics.jsonl goes on from the saved step: later rows and a torn line are gone."""
    train(small(data, steps=10), tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    before = path.read_text()
    path.write_text(before + json.dumps({"kind": "train", "step": 11, "loss": 1.0, "seconds": 1.0}) + '\n{"kind": "tr')
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["requested"]["steps"] = 20
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    train(small(data, steps=20), tmp_path / "run")
    steps = [row["step"] for row in read_lines(path) if row["kind"] == "train"]
    assert steps == list(range(1, 21))


def test_accumulation_is_the_whole_batch(data, tmp_path):
    """The same masks cut into parts give the same gradient: here for the next-token loss, which draws none."""
    network = replace(small(data, causal=True).network, dropout=0.0)
    for parts in (1, 4):
        train(small(data, causal=True, network=network, accumulate=parts, steps=5), tmp_path / str(parts))
    left, right = weights(tmp_path / "1"), weights(tmp_path / "4")
    for name in left:
        assert torch.allclose(left[name], right[name], rtol=1e-4, atol=1e-6), name


def test_a_step_is_the_plain_statement(data, tmp_path):
    """One step of the trainer equals a step written out by hand."""
    network_config = replace(small(data).network, dropout=0.0)
    config = small(data, network=network_config, steps=1, optimiser=Optimiser(rate=1e-2, warmup=1, clip=0.1))
    train(config, tmp_path / "run")

    network = Transformer(network_config, seed=0)
    blocks = Packed(load_split(data, "train"), 32, Tokenizer.load(data).begin)
    generator = keyed_generator(0, 0)
    x_0, maskable, _ = blocks.take(batch_indices(len(blocks), 8, seed=0, step=0))
    u = stratified(8, torch.rand((), generator=generator, dtype=torch.float64))
    (AnyOrder()(network, x_0, maskable, u, generator).sum() / maskable.sum()).backward()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in network.parameters()))
    for name, p in network.named_parameters():
        gradient = p.grad * min(1.0, 0.1 / (norm.item() + 1e-6))
        decay = 1 - 1e-2 * (0.1 if p.dim() >= 2 else 0.0)
        # Adam's first step: both moments corrected for bias are the gradient itself and its square
        expected = p.detach() * decay - 1e-2 * gradient / (gradient.abs() + 1e-8)
        found = weights(tmp_path / "run")[name]
        assert torch.allclose(found, expected, atol=2e-6), name


def test_the_average_follows_its_formula(data, tmp_path, monkeypatch):
    """mean <- d mean + (1-d) weights with d = min(decay, (1+n)/(10+n)), and the average is what load() gives."""
    from unmask.train.loop import _Run

    config = small(data, ema=0.5, steps=6)
    mean = {name: p.clone() for name, p in Transformer(config.network, seed=0).state_dict().items()}
    advance = _Run.advance

    def follow(self) -> None:
        advance(self)
        decay = min(0.5, (1 + self.step) / (10 + self.step))
        for name, p in self.state.network.state_dict().items():
            mean[name] = decay * mean[name] + (1 - decay) * p

    monkeypatch.setattr(_Run, "advance", follow)
    train(config, tmp_path / "run")
    for name, value in load(tmp_path / "run").network.state_dict().items():
        assert torch.allclose(value, mean[name], atol=1e-6), name


@pytest.mark.parametrize("objective", [AnyOrder(), AnyOrder(0.4), LambdaDCE(), TimeDSE()])
def test_every_denoising_loss_learns(data, tmp_path, objective):
    """300 steps take the counting text well below what its letters alone allow."""
    steps = 300
    network = TransformerConfig(vocab=258, layers=2, heads=2, width=48)
    config = small(data, network=network, objective=objective, steps=steps, validate_every=steps, save_every=steps)
    config = replace(config, batch=16, optimiser=Optimiser(rate=1e-2, warmup=10))
    train(config, tmp_path / "run")
    last = [row for row in read_lines(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "validation"][-1]
    tokens = load_split(data, "train").tokens
    p = torch.bincount(torch.from_numpy(tokens.astype("int64"))).double() / len(tokens)
    unigram = float(-(p[p > 0] * p[p > 0].log()).sum())
    assert last["nats_per_token"] + 4 * last["stderr"] < unigram - 0.3
    assert last["bound"] == "upper bound"


def test_expected_level():
    """Share of positions the output layer runs on: (L+1)/(2L) for k-DCE, 1/3 for lambda = u^2, all for next token."""
    assert expected_level(AnyOrder(), 128) == pytest.approx(129 / 256, rel=1e-3)
    assert expected_level(LambdaDCE(), 128) == pytest.approx(1 / 3, rel=1e-3)
    assert expected_level(NextToken(), 128) == 1.0


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, monkeypatch):
    """One line that says where, why, and what is left; the last good state stays."""
    from unmask.train.loop import _Run

    advance = _Run.advance

    def break_(self) -> None:
        if self.step == 2:
            with torch.no_grad():
                self.state.network.output.weight[0, 0] = float("nan")
        advance(self)

    monkeypatch.setattr(_Run, "advance", break_)
    with pytest.raises(ValueError, match=r"step 2: loss nan.*lower --rate.*checkpoints/00000002"):
        train(small(data, steps=20, save_every=1), tmp_path / "run")
    monkeypatch.undo()
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    donor = str(tmp_path / "run" / "checkpoints" / "00000002")
    train(small(data, steps=1, init=donor), tmp_path / "gentler")


def test_other_settings_in_the_same_folder_are_refused(data, tmp_path):
    train(small(data, steps=1), tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(length 32 there, 16 here\)"):
        train(small(data, steps=1, length=16), tmp_path / "run")
    rate = Optimiser(rate=0.5, warmup=5)
    with pytest.raises(ValueError, match=r"\(optimiser.rate 0.01 there, 0.5 here\): choose another or remove it$"):
        train(small(data, steps=1, optimiser=rate), tmp_path / "run")
    with pytest.raises(ValueError, match=r"\(steps 1 there, 3 here\).*let another begin as it, by --init and --out"):
        train(small(data, steps=3), tmp_path / "run")


def test_a_run_belongs_to_its_data(data, tmp_path):
    """The same folder name with another text in it is refused, and the run's tokenizer is never replaced."""
    source = tmp_path / "other.txt"
    source.write_text("something else altogether, said again and again. " * 40, encoding="utf-8")
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    train(small(moved, steps=1), tmp_path / "run")
    before = (tmp_path / "run" / "tokenizer.json").read_bytes()
    shutil.rmtree(moved)
    prepare(str(source), moved, tokenizer="bytes", validation=0.2)
    with pytest.raises(ValueError, match="other settings \\(corpus"):
        train(small(moved, steps=1), tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == before


def test_a_run_belongs_to_its_split(data, tmp_path):
    """The same texts with others of them held out: what was learnt may not be measured on."""
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    train(small(moved, steps=1), tmp_path / "run")
    shutil.rmtree(moved)
    prepare(str(data.parent / "text"), moved, tokenizer="bytes", validation=0.6)
    with pytest.raises(ValueError, match="other settings \\(corpus"):
        train(small(moved, steps=1), tmp_path / "run")


def test_what_a_checkpoint_takes_is_known_before(data, tmp_path):
    """To the byte, but for AdamW's counters of steps."""
    for name, ema in (("plain", 0.0), ("average", 0.9)):
        config = small(data, steps=1, ema=ema)
        tensors = weights(train(config, tmp_path / name))
        counters = [key for key in tensors if key.startswith("step.")]
        assert saved(config) == sum(value.nbytes for value in tensors.values()) - 4 * len(counters)
        assert memory(config)["state"] == saved(config) + 4 * config.network.parameters()["total"]


@pytest.mark.parametrize("decay", [1.0, 0.2, 0.0])
def test_the_rate_falls_over_the_last_share_of_the_steps(decay):
    """Warm-up, stable, decay; a share of 1 falls from the warm-up on, 0 never."""
    optimiser = Optimiser(rate=2.0, final=0.1, warmup=10, decay=decay)
    rates = [optimiser.at(step, 100) for step in range(101)]
    start = max(10, round(100 * (1 - decay)))
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[10 : start + 1] == pytest.approx([2.0] * (start + 1 - 10))
    assert rates[start:] == sorted(rates[start:], reverse=True)
    assert rates[100] == pytest.approx(0.2 if decay else 2.0)
    assert rates[(start + 100) // 2] == pytest.approx(1.1 if decay else 2.0)
    with pytest.raises(ValueError, match=r"decay 1.5 is a share of the steps"):
        Optimiser(decay=1.5)


def test_what_a_checkpoint_took_is_what_was_done(data, tmp_path):
    """Not what its run is to take: of one in the middle, of a run that was ended early, and of what is made of them."""
    config = small(data, steps=8, save_every=2, keep=4)
    run = train(config, tmp_path / "run")
    whole, early = config.cost(), run / "checkpoints" / "00000002"
    assert spent(str(run)) == whole
    assert spent(str(early)) == {name: value / 4 for name, value in whole.items()}
    assert train(small(data, steps=1, init=str(early)), tmp_path / "next")
    assert read_json(tmp_path / "next" / "config.json")["before"] == spent(str(early))
    for step in (8, 6):
        shutil.rmtree(run / "checkpoints" / f"{step:08d}")
    shutil.copy(run / "checkpoints" / "00000004" / "model.safetensors", run)
    assert spent(str(run))["tokens"] == whole["tokens"] / 2
    out = convert(run, tmp_path / "out", "unmask")
    assert spent(str(out))["tokens"] == whole["tokens"] / 2
    assert f"| tokens | {whole['tokens'] // 2:,} |" in (out / "README.md").read_text()


def test_a_run_that_goes_on_counts_as_it_began(data, tmp_path):
    """Planted fault: FLOPs counted anew after a restart, by a version that counts otherwise."""
    processes.stopped_training(str(tmp_path / "run"), 2, {"data": str(data), "steps": 4, "save_every": 2})
    told = read_json(tmp_path / "run" / "config.json")
    told["budget"]["flops_true"] *= 3
    write_json(tmp_path / "run" / "config.json", told)
    train(small(data, steps=4, save_every=2), tmp_path / "run")
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["flops"] == pytest.approx(told["budget"]["flops_true"])


def test_what_does_not_change_a_run_may_change(data, tmp_path):
    """Other intervals, and the same data under another path, go on with the run."""
    train(small(data, steps=4), tmp_path / "run")
    shutil.copytree(data, tmp_path / "elsewhere")
    train(small(tmp_path / "elsewhere", steps=4, validate_every=3, save_every=2), tmp_path / "run")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_in_a_step_waits_for_its_end(data, tmp_path, monkeypatch, signum):
    """Ctrl-C, or a scheduler's SIGTERM, in the middle of a step: it is finished and saved, and the run goes on
    bitwise.
    """
    from unmask.train.loop import _Run

    before = signal.getsignal(signum)
    config = small(data, steps=8)
    train(config, tmp_path / "whole")
    advance = _Run.advance

    def press(self) -> None:
        if self.step == 3:
            signal.raise_signal(signum)
        advance(self)

    monkeypatch.setattr(_Run, "advance", press)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        train(config, tmp_path / "cut")
    monkeypatch.undo()
    assert caught.type is KeyboardInterrupt if signum == signal.SIGINT else caught.value.code == 143
    assert last(tmp_path / "cut") == 4
    assert signal.getsignal(signum) == before
    train(config, tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_run_begins_from_anothers_weights_at_another_length(data, tmp_path):
    """The first loss is that of the donor's weights, not of drawn ones; another network is refused."""
    first = train(small(data, steps=20), tmp_path / "first")
    longer = small(data, init=str(first), length=48, steps=1, ema=0.5)
    train(longer, tmp_path / "longer")
    train(replace(longer, init=None), tmp_path / "drawn")
    learnt, drawn = (read_lines(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("longer", "drawn"))
    assert learnt < drawn - 1
    wide = TransformerConfig(vocab=258, layers=1, heads=2, width=64)
    with pytest.raises(ValueError, match="another network than this run's"):
        train(small(data, init=str(first), network=wide), tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
    with pytest.raises(ValueError, match="no run folder"):
        train(small(data, init=str(tmp_path / "nowhere")), tmp_path / "none")


def test_a_masked_model_begins_from_a_causal_one(data, tmp_path):
    """Its first loss, on all its tokens, is below that of drawn weights: what was learnt is still there."""
    causal = TransformerConfig(vocab=258, layers=1, heads=2, width=32, causal=True)
    first = train(small(data, steps=60, network=causal, objective=NextToken()), tmp_path / "first")
    opened = small(data, init=str(first), network=replace(causal, causal=False, shifted=True), steps=1)
    train(opened, tmp_path / "opened")
    train(replace(opened, init=None), tmp_path / "drawn")
    learnt, drawn = (read_lines(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("opened", "drawn"))
    assert learnt < drawn - 0.5


def test_recomputed_blocks_change_nothing(data, tmp_path):
    """Activation checkpointing: the same numbers bit for bit, dropout included."""
    for again in (False, True):
        train(small(data, steps=3, layers=2, recompute=again), tmp_path / str(again))
    assert same(tmp_path / "False", tmp_path / "True")


@pytest.mark.slow
def test_compiled_blocks_change_only_rounding(data, tmp_path):
    """torch.compile on every block, and a run that goes on without it."""
    for compiled in (False, True):
        train(small(data, steps=6, layers=2, dropout=0.0, compile=compiled), tmp_path / str(compiled))
    plain, compiled = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("False", "True"))
    assert [row["loss"] for row in compiled[:6]] == pytest.approx([row["loss"] for row in plain[:6]], rel=1e-4)


def test_no_clipping_is_no_limit(data, tmp_path):
    """clip 0 trains as a limit that is never reached does."""
    for clip in (0.0, 1e9):
        train(small(data, steps=2, optimiser=Optimiser(rate=1e-2, warmup=1, clip=clip)), tmp_path / str(clip))
    assert same(tmp_path / "0.0", tmp_path / "1000000000.0")


def test_dropout_leaves_the_global_generator_alone(data, tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(small(data, steps=2), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 9, "accumulate": 2}, "multiple of accumulate"),
        ({"objective": NextToken()}, "causal network trains with NextToken"),
        ({"steps": 0}, "steps 0 must be at least 1"),
        ({"validation_sequences": 0}, "validation_sequences 0"),
        ({"ema": 1.0}, "ema 1.0"),
    ],
)
def test_settings_that_do_not_fit(data, changes, message):
    with pytest.raises(ValueError, match=message):
        small(data, **changes)


def test_vocabulary_must_be_the_tokenizers(data, tmp_path):
    network = TransformerConfig(vocab=300, layers=1, heads=2, width=32)
    with pytest.raises(ValueError, match=r"vocab 300, but .* has 258"):
        train(small(data, network=network), tmp_path / "run")


def test_ctrl_c_saves_and_the_same_command_goes_on(data, tmp_path):
    """SIGINT: state saved at a whole step, exit code 130, no traceback; the command again finishes the run."""
    command = [sys.executable, "-m", "unmask", "train", "tiny", "--data", str(data), "--out", str(tmp_path / "run")]
    size = ["--layers", "1", "--heads", "2", "--width", "32", "--length", "32", "--batch", "8"]
    command += [*size, "--precision", "float32", "--device", "cpu", "--validate-every", "1000"]
    process = subprocess.Popen([*command, "--steps", "200"], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 5):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped after step" in err
    stopped = last(tmp_path / "run")
    assert 5 < stopped < 200
    again = subprocess.run([*command, "--steps", "200"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    steps = [row["step"] for row in read_lines(metrics) if row["kind"] == "train"]
    assert steps == list(range(1, 201))


@pytest.mark.parametrize(("undisturbed", "best"), [(1.0, "bfloat16"), (2.5, "float32")])
def test_the_best_turn_of_each_precision_counts(monkeypatch: pytest.MonkeyPatch, undisturbed: float, best: str):
    """float32 takes 3; bfloat16 is disturbed, but for one turn."""
    took = [each for turn in range(cpu.TURNS) for each in (3.0, undisturbed if turn == 7 else 9.0)]
    clock = itertools.accumulate(each for seconds in took for each in (0.0, seconds))
    monkeypatch.setattr(cpu.time, "perf_counter", lambda: next(clock))
    assert precision.best_precision(torch.device("cpu")) == best
