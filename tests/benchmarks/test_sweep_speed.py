"""The benches of whole sweeps: their lists of trials, their sums, and each side on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search.spec import parse
from search.trackers.jsonl import FILE
from tests.benchmarks import limit, sweep_speed
from tests.benchmarks.jobs import Job, dump
from tests.benchmarks.jobs import parse as parse_job
from tests.benchmarks.limit import Times
from tests.benchmarks.sides.thaw import NAME
from tests.benchmarks.soak import tiny_model
from tests.benchmarks.workloads import arithmetic, job, sweep_file
from training.data import prepare
from training.timing import Cost, Shape


def make(workload: str, model: str, trials: int = 24) -> Job:
    return job(workload, trials=trials, examples=96, validated=40, precision="fp32", processes=2, model=model)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    ("workload", "kinds"),
    [
        ("w1", {"head": 5, "top-1": 5, "top-2": 5, "gradual": 5, "full": 4}),
        ("w2", {"head": 8, "top-1": 8, "top-2": 8}),
        ("w3", {"full": 24}),
    ],
)
def test_workloads_are_what_they_are_said_to_be(workload: str, kinds: dict[str, int], tiny: str) -> None:
    given = make(workload, tiny)
    names = [task.kind for task in given.tasks]
    assert {kind: names.count(kind) for kind in names} == kinds
    assert {task.batch_size for task in given.tasks} == {16, 32}
    assert parse_job(dump(given)) == given
    spec = parse(sweep_file(given, "bench"))
    assert [point["unfreezing.schedule"] for point in spec.search.points] == [t.schedule for t in given.tasks]


def test_a_share_of_a_gpu_reaches_the_sweep(tiny: str) -> None:
    given = job(
        "w1", trials=2, examples=96, validated=40, precision="bf16", processes=4, gpus=0.25, model=tiny
    )
    resources = parse(sweep_file(given, "bench")).resources
    assert (resources.gpus_per_worker, resources.max_concurrent) == (0.25, 4)
    assert parse(sweep_file(make("w1", tiny), "bench")).resources.gpus_per_worker == 0


def test_rivals_thaw_what_the_schedule_says(tiny: str) -> None:
    stages = make("w1", tiny).tasks[3].stages
    assert [stage.start for stage in stages] == [0, 1, 2, 3]
    assert [len(stage.thawed) for stage in stages] == [2, 3, 4, 5]
    assert "bert.encoder.layer.2." in stages[1].thawed
    assert "bert.embeddings." in make("w3", tiny).tasks[0].stages[0].thawed


def test_arithmetic_follows_the_formula_of_the_design(tiny: str) -> None:
    full = arithmetic(make("w3", tiny))
    assert full.thaw == full.rival
    [top] = [task for task in make("w2", tiny, trials=2).tasks if task.kind == "top-1"]
    given = Job(**{**vars(make("w2", tiny, trials=2)), "tasks": (top,), "validated": 1})
    found = arithmetic(given)
    blocks = 3  # (L + 2k) / 3k with one trial and the frozen blocks once, which come to the same
    assert found.rival * (3 * blocks + 0.25) == pytest.approx(blocks + 2 + 0.25, rel=0.01)
    assert found.thaw == pytest.approx(found.rival, rel=0.01)


def test_products_count_linear_layers_and_attention() -> None:
    lengths = np.array([3, 5])
    linear = 8 * 2 * (4 * 4 * 4 + 2 * 4 * 8)
    scores = 2 * 2 * 4 * (9 + 25)
    assert limit.products(lengths, hidden=4, inner=8) == linear + scores


def test_a_finished_side_is_not_run_again(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = make("w2", tiny, trials=3)
    out = tmp_path / "out.json"
    kept = {}
    for side, seconds in (("stack", 100.0), ("trainer", 30.0), ("thaw", 10.0)):
        trials = [{"number": n, "accuracy": 0.5 + (side == "thaw") * 0.1, "seconds": 1.0} for n in range(3)]
        name = f"fp32/w2/{side}/{sweep_speed.digest(given)}"
        kept[name] = {"seconds": seconds, "trials": trials}
    out.write_text(json.dumps({"kept": kept}))
    arguments = ["--workloads", "w2", "--trials", "3", "--examples", "96", "--validation", "40"]
    found = sweep_speed.main([*arguments, "--processes", "2", "--model", tiny, "--out", str(out)])
    [row] = found["rows"]
    assert row["ratios"] == {"stack": 10.0, "trainer": 3.0}
    assert row["difference"]["trainer"]["mean"] == pytest.approx(0.1)
    assert json.loads(out.read_text())["rows"] == found["rows"]
    printed = capsys.readouterr().out
    assert "10.00 (>=6)" in printed
    assert "3.00 (>=2)" in printed
    assert "10.00 (>6)" in sweep_speed.table({**found, "rows": [{**row, "precision": "bf16"}]})


def test_what_another_machine_finished_is_run_again(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = make("w2", tiny)
    here = sweep_speed.digest(given)
    assert sweep_speed.digest(given) == here
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(sweep_speed, "_BOOT", tmp_path / "boot")
    assert sweep_speed.digest(given) != here


def test_all_of_the_wall_clock_is_accounted_for(tiny: str) -> None:
    given = make("w1", tiny, trials=3)
    trials = [
        Times(start=10.0, opened=20.0, finish=24.0),
        Times(start=10.1, opened=21.0, finish=22.0),
        Times(start=22.0, opened=22.5, finish=30.0),
    ]
    assert [len(lane) for lane in limit.lanes(trials, 2)] == [1, 2]
    costs = [
        Cost(
            shape=shape,
            begin_s=0.1,
            step_s=0.2,
            evaluation_s=0.3,
            store_s=0.4,
            trained=96,
            evaluated=40,
            end_s=0.5,
            checkpoint_bytes=1,
        )
        for shape in limit.shapes(given)
    ]
    done = limit.Work(suffix=200.0, prefix=20.0, padding=30.0)
    spent = limit.account(
        given, spawned=0.0, ended=33.0, trials=trials, costs=costs, done=done, per_second=100.0
    )
    total = spent.pop("total")
    assert total == 66.0
    assert sum(spent.values()) == pytest.approx(total)
    assert spent["cold start: driver, Ray, gangs, model and data"] == 2 * 10 + 10 + 11
    assert spent["between trials"] == 0.5
    assert spent["gangs idle at the end"] == 6.0
    assert spent["export and shutdown"] == 6.0


def test_what_is_computed_grows_with_what_thaws(tiny: str, cache: Path) -> None:
    light, heavy = make("w2", tiny), make("w3", tiny)
    spec = parse(sweep_file(light, "bench"))
    data = prepare(spec.model, spec.task, spec.data)
    assert Shape(depth=4, batch_size=16) in limit.shapes(heavy)
    less, more = limit.work(light, data), limit.work(heavy, data)
    assert less.suffix < 0.5 * more.suffix
    # A top block alone: forward, and backward but for what would go on to the frozen block below.
    [top] = [task for task in make("w2", tiny, trials=2).tasks if task.kind == "top-1"]
    found = limit.work(Job(**{**vars(light), "tasks": (replace(top, number=0),)}), data)
    hidden, inner = limit.sizes(light)
    lengths = data.train.lengths
    below = 6 * hidden * hidden * float(lengths.sum())
    assert found.suffix == pytest.approx(3 * limit.products(lengths, hidden=hidden, inner=inner) - below)
    everything = limit.work(Job(**{**vars(heavy), "tasks": heavy.tasks[:1]}), data)
    blocks = 3 * heavy.num_blocks
    assert everything.suffix == pytest.approx(blocks * limit.products(lengths, hidden=hidden, inner=inner))
    assert less.prefix > 0 == more.prefix
    assert more.padding > 0


@pytest.mark.slow
@pytest.mark.parametrize("side", ["stack", "trainer"])
def test_each_rival_runs_its_trials(side: str, tiny: str) -> None:
    given = make("w1", tiny, trials=5 if side == "trainer" else 2)
    found = sweep_speed.measure(given, side, 300.0)
    assert found["seconds"] > 0
    assert all(0 <= trial["accuracy"] <= 1 for trial in found["trials"])
    assert len(found["trials"]) == len(given.tasks)


@pytest.mark.slow
def test_thaw_runs_its_trials_on_gangs_that_start_together(tiny: str, tmp_path: Path) -> None:
    given = make("w1", tiny, trials=2)
    found = sweep_speed.measure(given, "thaw", 300.0, tmp_path)
    assert all(0 <= trial["accuracy"] <= 1 for trial in found["trials"])
    first, second = limit.times(tmp_path / "runs" / NAME / FILE)
    assert abs(first.start - second.start) < 0.5, "neither waits for the other's process"


@pytest.mark.slow
def test_limit_tells_where_the_time_goes(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trials", "2", "--examples", "64", "--validation", "32", "--processes", "1"]
    found = limit.main([*arguments, "--model", tiny])
    assert 0 < found["reached"] < 1
    assert sum(found["shares"].values()) == pytest.approx(1.0, abs=0.01)
    assert found["shares"]["cold start: driver, Ray, gangs, model and data"] > 0.1
    assert "GFLOP/s" in capsys.readouterr().out
