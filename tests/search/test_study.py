"""The ledger: what goes in comes out, whatever happens to the process in between."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.config import SamplerConfig
from search.study import PhaseRecord, Result, Study, TrialRecord, TrialState
from tests.search import ledgers
from tests.search.ledgers import METRIC, ROOT, go_on, opened, result, storage, suggest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "study.journal"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    study = opened(tmp_path_factory.mktemp("whole") / "study.journal")
    go_on(study, 30)
    return study.trials()


def test_what_goes_in_comes_out_of_another_process(path: Path) -> None:
    study = opened(path)
    trial = study.ask()
    assert trial.number == 0
    assert trial.state is TrialState.RUNNING
    assert 0 <= trial.seed < 2**31
    assert trial.params["epochs"] == 2
    assert ("unfreezing.depth" in trial.params) == (trial.params["unfreezing.schedule"] == "top")
    phases = (
        PhaseRecord(name="head", start_epoch=0.0, thawed="head"),
        PhaseRecord(name="top-2", start_epoch=0.5, thawed="head + blocks 4-5"),
    )
    study.record_phases(0, phases)
    study.report(0, result(1.0, 0.9))
    study.report(0, result(2.0, 0.8, checkpoint=None))
    told = study.tell(0, TrialState.COMPLETE)

    read = Study.read(path)
    assert (read.name, read.metric, read.goal, read.seed) == ("sweep", METRIC, "maximize", 7)
    record = read.trial(0)
    assert record == told
    assert record.params == trial.params
    assert record.phases == phases
    assert [r.epochs for r in record.results] == [1.0, 2.0]
    assert record.value(METRIC, "maximize") == 0.9
    assert record.value(METRIC, "minimize") == 0.8
    assert (record.epochs, record.seconds, record.checkpoint) == (2.0, 20.0, "checkpoints/1.0")
    assert read.best() == record


def test_seeds_differ_from_trial_to_trial_and_from_sweep_to_sweep(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "a"), opened(tmp_path / "b", seed=8)
    seeds = {study.ask().seed for study in (one, other) for _ in range(10)}
    assert len(seeds) == 20
    assert [t.params for t in one.trials()] != [t.params for t in other.trials()]


def test_optuna_keeps_quiet(path: Path) -> None:
    code = "import runpy, sys; from pathlib import Path; m = runpy.run_path(sys.argv[1]); "
    code += "m['go_on'](m['opened'](Path(sys.argv[2])), 12)"
    command = [sys.executable, "-c", code, ledgers.__file__, str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_reopened_after_every_trial_it_draws_the_same(path: Path, uninterrupted: list[TrialRecord]) -> None:
    for trials in range(1, 31):
        go_on(opened(path), trials)
    assert opened(path).trials() == uninterrupted


def test_random_kills_change_nothing(path: Path, uninterrupted: list[TrialRecord]) -> None:
    """Real processes, killed with SIGKILL; no result is lost, doubled, or drawn differently."""
    code = "import runpy, sys; from pathlib import Path; m = runpy.run_path(sys.argv[1]); "
    code += "m['go_on'](m['opened'](Path(sys.argv[2])), 30)"
    rng = random.Random(0)
    kills = 0
    for _ in range(4):
        environment = {**os.environ, "PYTHONHASHSEED": str(rng.randrange(1000)), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code, ledgers.__file__, str(path)]
        driver = subprocess.Popen(command, env=environment)
        begun = path.stat().st_size if path.exists() else 0
        while driver.poll() is None and not (path.exists() and path.stat().st_size > begun):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.06))
        driver.kill()
        kills += driver.wait() == -9
    assert kills >= 2, "the sweep ended before it could be killed"
    study = opened(path)
    go_on(study, 30)
    assert study.trials() == uninterrupted


def test_reporting_the_same_epochs_again_replaces(path: Path) -> None:
    study = opened(path)
    study.ask()
    for value in (0.5, 0.7):
        study.report(0, result(0.5, value, checkpoint=f"at-{value}"))
    study.report(0, result(0.25, 0.1))
    assert [r.epochs for r in study.trial(0).results] == [0.25, 0.5]
    assert study.trial(0).checkpoint == "at-0.7"
    study.tell(0, TrialState.PRUNED)
    frozen = optuna.load_study(study_name=None, storage=storage(path)).trials[0]
    assert frozen.intermediate_values == {2_500: 0.1, 5_000: 0.7}


def test_it_is_a_plain_optuna_study(path: Path) -> None:
    study = opened(path, goal="minimize", metric="eval/loss")
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED, TrialState.INFEASIBLE):
        number = study.ask().number
        if state in (TrialState.COMPLETE, TrialState.PRUNED):
            for epochs, value in ((1.0, 0.25), (2.0, 0.5)):
                study.report(number, Result(epochs=epochs, metrics={"eval/loss": value}))
        has_failed = state in (TrialState.FAILED, TrialState.INFEASIBLE)
        study.tell(number, state, error="out of memory\nlong story" if has_failed else None)
    study.ask()

    plain = optuna.load_study(study_name="sweep", storage=storage(path))
    assert plain.direction is optuna.study.StudyDirection.MINIMIZE
    assert plain.metric_names == ["eval/loss"]
    assert [t.state.name for t in plain.trials] == ["COMPLETE", "PRUNED", "FAIL", "PRUNED", "RUNNING"]
    assert [t.value for t in plain.trials] == [0.25, 0.5, None, None, None]
    assert plain.trials[1].intermediate_values == {10_000: 0.25, 20_000: 0.5}
    assert plain.trials[2].user_attrs["error"] == "out of memory"
    states = [t.state.value for t in study.trials()]
    assert states == ["complete", "pruned", "failed", "infeasible", "running"]
    assert study.trial(3).error == "out of memory"
    assert study.best() == study.trial(0)


def test_values_that_are_no_numbers_stay_out_of_json_and_of_optuna(path: Path) -> None:
    study = opened(path)
    study.ask()
    metrics = {METRIC: math.nan, "eval/loss": math.inf, "eval/gain": -math.inf}
    study.report(0, Result(epochs=1.0, metrics=metrics))
    study.report(0, result(2.0, 0.5))
    study.report(0, result(3.0, math.inf))
    study.tell(0, TrialState.COMPLETE)
    read = Study.read(path).trial(0)
    assert read.value(METRIC, "maximize") == 0.5
    assert math.isnan(read.results[0].metrics[METRIC])
    assert read.results[0].metrics["eval/loss"] == math.inf
    assert read.results[0].metrics["eval/gain"] == -math.inf
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the journal"))
    assert optuna.load_study(study_name=None, storage=storage(path)).trials[0].value == 0.5


def test_complete_without_a_finite_value_has_failed(path: Path) -> None:
    study = opened(path)
    study.ask()
    study.report(0, result(1.0, math.nan))
    told = study.tell(0, TrialState.COMPLETE)
    assert told.state is TrialState.FAILED
    assert told.error == f"no finite value of {METRIC}"
    assert study.tell(0, TrialState.COMPLETE) == told
    assert study.best() is None


def test_a_closed_trial_stays_as_it_is(path: Path) -> None:
    study = opened(path)
    study.ask()
    study.report(0, result(1.0, 0.5))
    told = study.tell(0, TrialState.PRUNED)
    assert study.tell(0, TrialState.PRUNED) == told
    with pytest.raises(AssertionError, match="cannot become failed"):
        study.tell(0, TrialState.FAILED)
    with pytest.raises(AssertionError, match="pruned already"):
        study.report(0, result(2.0, 0.9))
    assert study.trials() == [told]
    assert Study.read(path).trials() == [told]


def test_unfinished_are_running_and_paused(path: Path) -> None:
    study = opened(path)
    for _ in range(3):
        study.ask()
    study.report(1, result(0.5, 0.5))
    study.report(1, result(1.0, 0.5, checkpoint=None))
    study.rule(1, "pause", "asha")
    study.report(2, result(2.0, 0.5))
    study.tell(2, TrialState.COMPLETE)
    again = opened(path)
    assert [(t.number, t.state.value) for t in again.unfinished()] == [(0, "running"), (1, "paused")]
    assert again.unfinished()[1].checkpoint == "checkpoints/0.5"
    again.rule(1, "promote", "asha")
    assert study.trial(1).state is TrialState.RUNNING


def test_deleted_checkpoints_are_named_no_more(path: Path) -> None:
    study, other = opened(path), opened(path)
    study.ask()
    study.report(0, result(1.0, 0.5))
    study.report(0, result(2.0, 0.5))
    study.tell(0, TrialState.COMPLETE)
    study.ask()
    study.report(1, result(1.0, 0.5, checkpoint="other"))
    assert len(other.trials()) == 2
    study.forget_checkpoints(["checkpoints/1.0"])
    study.forget_checkpoints(["checkpoints/2.0", "other", "never heard of"])
    for reader in (study, other, Study.read(path)):
        assert [r.checkpoint for t in reader.trials() for r in t.results] == [None, None, None]
    study.report(1, result(1.0, 0.5, checkpoint="other"))
    assert study.trial(1).checkpoint == "other"


def test_an_ask_that_fails_leaves_nothing_behind(path: Path) -> None:
    fail = True

    def moody(trial: optuna.Trial) -> dict[str, Any]:
        params = suggest(trial)
        if fail:
            raise ValueError("no such parameter")
        return params

    study = opened(path, suggest=moody)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="no such parameter"):
        study.ask()
    assert path.read_bytes() == before
    assert study.trials() == []
    fail = False
    assert study.ask().number == 0


def test_two_drivers_share_one_ledger(path: Path) -> None:
    one, other = opened(path), opened(path)
    numbers = [study.ask().number for study in (one, other, one, other)]
    assert numbers == [0, 1, 2, 3]
    other.report(0, result(1.0, 0.5))
    assert one.trial(0).epochs == 1.0
    assert one.trials() == other.trials()


def test_threads_lose_nothing(path: Path) -> None:
    study = opened(path, sampler=SamplerConfig(type="random"))

    def drive() -> None:
        for _ in range(5):
            number = study.ask().number
            for epochs in (1.0, 2.0):
                study.report(number, result(epochs, 0.5))
            study.trials()
            study.tell(number, TrialState.COMPLETE)

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = Study.read(path).trials()
    assert [t.number for t in trials] == list(range(20))
    assert {(t.state, t.epochs) for t in trials} == {(TrialState.COMPLETE, 2.0)}


def test_a_trial_asked_for_by_hand_comes_next_and_changes_no_other_number(path: Path) -> None:
    study = opened(path)
    study.ask()
    plain = optuna.load_study(study_name=None, storage=storage(path))
    plain.enqueue_trial({"learning_rate": 1e-3, "batch_size": 16})
    assert [t.number for t in study.trials()] == [0], "it is not a trial before it is drawn"
    trial = study.ask()
    assert trial.number == 1
    assert (trial.params["learning_rate"], trial.params["batch_size"]) == (1e-3, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 8}, "made with seed 7, got 8"),
        ({"metric": "eval/loss"}, "made with metric 'eval/accuracy', got 'eval/loss'"),
        ({"goal": "minimize"}, "made with goal 'maximize', got 'minimize'"),
        ({"sampler": SamplerConfig(type="random")}, "made with sampler 'tpe', got 'random'"),
    ],
)
def test_what_the_ledger_was_made_with_stays(path: Path, changes: dict[str, Any], message: str) -> None:
    opened(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        opened(path, **changes)
    assert path.read_bytes() == before


def test_bad_input(path: Path) -> None:
    with pytest.raises(ValueError, match="there is no study"):
        opened(path, create=False)
    with pytest.raises(ValueError, match="there is no study"):
        Study.read(path)
    assert not path.parent.exists(), "nothing is made where nothing was to be made"
    study = opened(path)
    with pytest.raises(ValueError, match="there is no trial 3 in sweep sweep"):
        study.trial(3)
    foreign = path.parent / "foreign"
    optuna.create_study(storage=storage(foreign))
    with pytest.raises(ValueError, match="not one of a Thaw sweep"):
        Study.read(foreign)
