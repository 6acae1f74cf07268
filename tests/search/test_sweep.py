"""A sweep's directory: made, found, taken up again, told apart from another's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search.loading import load, loads
from search.preflight import Facts
from search.records import Result, TrialState
from search.spec import SweepSpec
from search.sweep import (
    DRAFT_FILE,
    IDENTITY_FILE,
    LEDGER_FILE,
    SPEC_FILE,
    check_name,
    commit,
    create,
    export,
    find,
    flat_settings,
    is_finished,
    versions,
)
from tests.cli import write_sweep
from tests.conftest import REPOSITORY

FACTS = Facts(
    num_blocks=6, num_train=8, num_validation=4, label_names=("neg", "pos"), data_fingerprint="f00d"
)
OTHER = Facts(
    num_blocks=6, num_train=8, num_validation=4, label_names=("neg", "pos"), data_fingerprint="beef"
)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def spec(directory: Path, *overrides: str, **sections: Any) -> SweepSpec:
    directory.mkdir(exist_ok=True)
    return load(str(write_sweep(directory, **sections)), overrides)


def test_what_is_made(tmp_path: Path, storage: Path) -> None:
    asked = spec(tmp_path)
    made = create(asked, storage, FACTS)
    assert made.directory == storage / "tiny"
    assert {path.name for path in made.directory.iterdir()} == {SPEC_FILE, IDENTITY_FILE, LEDGER_FILE}
    text = (made.directory / SPEC_FILE).read_text()
    assert loads(text) == asked == made.spec
    assert "eval/accuracy" in text
    identity = json.loads((made.directory / IDENTITY_FILE).read_text())
    assert len(identity["id"]) == 32
    assert identity["versions"] == versions()
    assert {"python", "thaw", "ray", "torch", "transformers", "deepspeed", "optuna"} == set(versions())
    assert identity["commit"] == commit()
    assert identity["data_fingerprint"] == "f00d"
    study = made.read()
    assert (study.name, study.metric, study.goal, study.seed) == ("tiny", "eval/accuracy", "maximize", 0)
    assert study.trials() == []
    assert not is_finished(made)


def test_what_is_found_is_what_was_made(tmp_path: Path, storage: Path) -> None:
    asked = spec(
        tmp_path,
        training={"epochs": 1.5, "zero": {"stage": 3}},
        resources={"workers": 2, "max_concurrent": 3},
        checkpoints={"keep": 7},
    )
    made = create(asked, storage)
    found = find("tiny", storage)
    assert found == made
    study = made.open()
    config = found.trial_config(study.ask())
    assert (config.training.epochs, config.training.zero.stage) == (1.5, 3)
    assert config.training.learning_rate == study.trial(0).params["learning_rate"]
    assert config.seed == study.trial(0).seed
    assert found.trial_directory(0) == storage / "tiny" / "trials" / "0000"


def test_the_same_sweep_is_taken_up_again(tmp_path: Path, storage: Path) -> None:
    made = create(spec(tmp_path), storage, FACTS)
    made.open().ask()
    before = {path: path.read_bytes() for path in made.directory.iterdir()}
    again = create(spec(tmp_path), storage, FACTS)
    assert again == made
    assert {path: path.read_bytes() for path in made.directory.iterdir()} == before
    assert len(again.read().trials()) == 1


def test_the_same_data_may_lie_elsewhere(tmp_path: Path, storage: Path) -> None:
    create(spec(tmp_path / "here"), storage, FACTS)
    moved = spec(tmp_path / "there")
    assert create(moved, storage, FACTS).spec.data.train == str(tmp_path / "there" / "train.jsonl")
    with pytest.raises(ValueError, match=r"^data: sweep 'tiny' in .*/runs was begun with other examples"):
        create(moved, storage, OTHER)
    check_name(moved, storage)  # without facts, the contents are not looked at


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("search.trials=3", r"search\.trials: 4 -> 3"),
        ("search.seed=1", r"search\.seed: 0 -> 1"),
        ("parameters.learning_rate.max=0.01", r"parameters\.learning_rate\.max: 0\.001 -> 0\.01"),
        ("parameters.batch_size={values: [8, 16]}", r"parameters\.batch_size\.values: unset -> \[8, 16\]"),
        ("task.max_length=32", r"task\.max_length: 128 -> 32"),
        ("data.limit.train=4", r"data\.limit\.train: unset -> 4"),
        ("data.subset=other", r"data\.subset: unset -> 'other'"),
    ],
)
def test_another_sweep_of_the_same_name_says_what_differs(
    tmp_path: Path, storage: Path, override: str, change: str
) -> None:
    made = create(spec(tmp_path), storage)
    before = {path: path.read_bytes() for path in made.directory.iterdir()}
    law = rf"^name: sweep 'tiny' is in .*, with another file \(.*{change}.*--set name=.*resume tiny"
    for act in (check_name, create):
        with pytest.raises(ValueError, match=law):
            act(spec(tmp_path, override), storage)
    assert {path: path.read_bytes() for path in made.directory.iterdir()} == before


def test_what_may_change_is_taken_over(tmp_path: Path, storage: Path) -> None:
    create(spec(tmp_path), storage)
    changed = spec(tmp_path, "search.trials=6", "resources.max_concurrent=2")
    assert check_name(changed, storage) == [
        "search.trials: 4 -> 6",
        "resources.max_concurrent: 'auto' -> 2",
    ]
    made = create(changed, storage)
    assert find("tiny", storage).spec == changed
    assert made.target(made.read()) == 6
    made.open().aim(7)  # extended since
    again = create(spec(tmp_path, "search.trials=9", "resources.max_concurrent=2"), storage)
    assert again.target(again.read()) == 9
    both = spec(tmp_path, "search.trials=10", "search.seed=1", "resources.max_concurrent=2")
    law = r"another file \(search\.seed: 0 -> 1\); of a sweep that has begun only more trials"
    with pytest.raises(ValueError, match=law):
        create(both, storage)
    assert find("tiny", storage).spec.search.trials == 9  # not even what may


def test_a_budget_of_money_may_come_later(tmp_path: Path, storage: Path) -> None:
    """With the prices that it goes by; and what a sweep gets of a cluster that others use as well."""
    create(spec(tmp_path), storage)
    new = ["search.budget.cost=5", "resources.prices={default: 1.5}"]
    new += ["resources.priority=3", "resources.max_gangs=1"]
    paths = [line.partition(":")[0] for line in check_name(spec(tmp_path, *new), storage)]
    assert sorted(paths) == [
        "resources.max_gangs",
        "resources.prices.default",
        "resources.priority",
        "search.budget.cost",
    ]


def test_a_free_name_is_checked_without_making_anything(tmp_path: Path, storage: Path) -> None:
    check_name(spec(tmp_path), storage, FACTS)
    assert not storage.exists()


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, storage: Path) -> None:
    directory = storage / "tiny"
    directory.mkdir(parents=True)
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^name: .*/runs/tiny is there already and is not a sweep; "):
        create(spec(tmp_path), storage)
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("left", [[], [IDENTITY_FILE], [IDENTITY_FILE, DRAFT_FILE]])
def test_a_kill_while_it_was_made_does_no_harm(tmp_path: Path, storage: Path, left: list[str]) -> None:
    directory = storage / "tiny"
    directory.mkdir(parents=True)
    for name in left:
        (directory / name).write_text("{")
    made = create(spec(tmp_path), storage)
    assert find("tiny", storage) == made
    assert json.loads((directory / IDENTITY_FILE).read_text())["id"]
    made.ledger.write_bytes(b"")  # or while the ledger was made
    assert not is_finished(made)
    assert create(spec(tmp_path), storage).read().trials() == []


def test_a_sweep_goes_by_its_directory_s_name(tmp_path: Path, storage: Path) -> None:
    create(spec(tmp_path), storage)
    shutil.copytree(storage / "tiny", storage / "backup")
    copy = find("backup", storage)
    assert copy.spec.name == "backup"
    assert create(copy.spec, storage) == copy  # so `resume backup` does not go on with tiny
    assert find("tiny", storage).spec.name == "tiny"


@pytest.mark.parametrize("name", ["", ".", "..", "../tiny", "tiny/", "/tiny", "a/../tiny", "Tiny", "none"])
def test_what_is_not_the_name_of_a_sweep(tmp_path: Path, storage: Path, name: str) -> None:
    made = create(spec(tmp_path), storage)
    (made.directory / "trials").mkdir()
    with pytest.raises(ValueError, match=r"^there is no sweep '.*' in .*/runs; (did you mean|known:) tiny"):
        find(name, storage)
    with pytest.raises(ValueError, match="it holds none, so check --storage, or start one with `run`"):
        find(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no sweep"):
        find(name, storage / "tiny" / "trials")


def test_finished_is_when_all_trials_have_ended(tmp_path: Path, storage: Path) -> None:
    made = create(spec(tmp_path, "search.trials=2"), storage)
    study = made.open()
    for number in (0, 1):
        assert not is_finished(made)
        assert study.ask().number == number
        assert not is_finished(made)
        study.report(number, Result(epochs=1, metrics={"eval/accuracy": 0.5}, seconds=1))
        study.tell(number, TrialState.PRUNED if number else TrialState.COMPLETE)
    assert is_finished(made)
    assert is_finished(find("tiny", storage))


def test_only_a_checkpoint_that_was_kept_is_exported(tmp_path: Path, storage: Path) -> None:
    made = create(spec(tmp_path), storage)
    study = made.open()
    study.ask()
    study.report(0, Result(epochs=1, metrics={"eval/accuracy": 0.5}, checkpoint="c", seconds=1))
    study.forget_checkpoints(["c"])
    with pytest.raises(ValueError, match=r"^trial 0: its checkpoint was not kept; .* \(checkpoints\.keep\)$"):
        export(made, study.trial(0), tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^--output: .*/file cannot be written \(a file is in the way\)"):
        export(made, study.trial(0), tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_settings_are_flat_for_the_trackers(tmp_path: Path, storage: Path) -> None:
    made = create(spec(tmp_path), storage)
    record = made.open().ask()
    flat = flat_settings(made.trial_config(record))
    assert {name: flat[name] for name in record.params} == record.params
    assert (flat["zero.stage"], flat["task.max_length"], flat["data.limit.train"]) == (2, 128, None)
    assert flat["model.name"] == made.spec.model.name
    assert "seed" not in flat


def test_reading_a_sweep_needs_no_ray(tmp_path: Path, storage: Path) -> None:
    create(spec(tmp_path), storage)
    script = "import sys; from pathlib import Path; from search.sweep import find\n"
    script += "assert find('tiny', Path(sys.argv[1])).read().trials() == []\n"
    script += "print({'ray', 'torch', 'transformers', 'wandb'} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(storage)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert ended.stdout.strip() == "set()"
