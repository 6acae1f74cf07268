from __future__ import annotations

import json
import math
import shutil
import threading
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import Crew, MakeTrial, assert_same
from training import checkpoint
from training.checkpoint import (
    CheckpointError,
    DamagedCheckpoint,
    Identity,
    State,
    Told,
    clean,
    load_weights,
    newest,
    path_of,
    read_manifest,
)
from training.config import EarlyStoppingConfig, ZeroConfig
from training.draft import Draft
from training.manifest import digest
from training.optim import Slots
from training.team import Team

WEIGHTS = "weights-00000-of-00001.safetensors"
SLOTS = "slots-00000-of-00001.safetensors"
SCALER = {"cur_scale": 512.0, "cur_hysteresis": 1, "cur_iter": 7, "last_overflow_iter": 6}
LOSSES = (0.5, float("inf"))
MINE = Identity(model="m", data="d", settings="s")


def state(step: int = 3, width: int = 4) -> State:
    draw = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(width, 3, generator=draw) for name in ("a.weight", "head.bias")}
    kept = {
        "exp_avg": torch.randn(width, 3, generator=draw),
        "exp_avg_sq": torch.rand(width, 3, generator=draw),
    }
    slots = {"a.weight": Slots(tensors=kept, steps=2)}
    return State(step=step, weights=weights, slots=slots, scaler=SCALER, losses=LOSSES, seconds=1.25)


HISTORY = [
    Told(step=1, metrics={"eval/accuracy": 0.5, "eval/loss": float("nan")}),
    Told(step=3, metrics={"eval/accuracy": 0.1 + 0.2, "eval/loss": 1.0}),
]


def write(directory: Path, step: int = 3, ranks: int = 1, made: State | None = None) -> Path:
    """A checkpoint as `ranks` ranks write it together."""
    made = made or state(step)
    path = path_of(directory, step)
    drafts = [Draft(path, made, rank=rank, ranks=ranks, token="t") for rank in range(ranks)]
    files = {name: file for draft in drafts for name, file in draft.files().items()}
    drafts[0].commit(files, MINE, phase="head", history=HISTORY)
    return path


def test_round_trip(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "with-parents"
    path = write(directory)
    found = newest(directory, MINE)
    assert found is not None
    assert (found.path, found.phase, found.state.step) == (path, "head", 3)
    assert (found.state.scaler, found.state.losses, found.state.seconds) == (SCALER, LOSSES, 1.25)
    assert [told.step for told in found.history] == [1, 3]
    assert found.history[1] == HISTORY[1]
    assert found.history[0].metrics["eval/accuracy"] == 0.5
    assert math.isnan(found.history[0].metrics["eval/loss"])
    assert_same(found.state.weights, state().weights)
    (name, slots), *rest = found.state.slots.items()
    assert (name, slots.steps, rest) == ("a.weight", 2, [])
    assert_same(slots.tensors, state().slots["a.weight"].tensors)
    assert_same(load_weights(path, "m"), state().weights)


def test_files_are_safetensors_and_a_manifest(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert {file.name for file in path.iterdir()} == {
        "manifest.json", WEIGHTS, SLOTS
    }  # fmt: skip
    assert set(load_file(path / WEIGHTS)) == {"a.weight", "head.bias"}
    assert set(load_file(path / SLOTS)) == {"exp_avg/a.weight", "exp_avg_sq/a.weight"}
    assert [item.name for item in tmp_path.iterdir()] == ["step-00000003"]


def test_bytes_are_in_proportion_to_what_thawed(tmp_path: Path) -> None:
    sizes = []
    for step, width in ((1, 10), (2, 10_000)):
        path = write(tmp_path, made=state(step, width), step=step)
        sizes.append(sum(file.stat().st_size for file in path.iterdir()))
    # Two weights and two moments of width x 3 floats, and little more.
    assert sizes[0] < 4 * 10 * 3 * 4 + 2_500
    assert sizes[1] < 4 * 10_000 * 3 * 4 + 2_500


def test_newest(tmp_path: Path) -> None:
    assert newest(tmp_path, MINE) is None
    assert newest(tmp_path / "absent", MINE) is None
    for step in (7, 12, 9):
        write(tmp_path, step)
    found = newest(tmp_path, MINE)
    assert found is not None
    assert found.state.step == 12


def test_one_that_was_cut_off_is_not_picked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 3)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("describe", "save_file"):
        with monkeypatch.context() as patch:
            patch.setattr(f"training.draft.{name}", fail)
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path, 6)
        assert not path_of(tmp_path, 6).exists()
        found = newest(tmp_path, MINE)
        assert found is not None
        assert found.state.step == 3
    write(tmp_path, 6)  # what lies about is no hindrance
    clean(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["step-00000003", "step-00000006"]


def test_ranks_write_their_shares(tmp_path: Path) -> None:
    path = write(tmp_path, ranks=2)
    assert {file.name for file in path.iterdir()} == {
        "manifest.json",
        *(f"{kind}-{rank:05d}-of-00002.safetensors" for kind in ("weights", "slots") for rank in (0, 1)),
    }
    shares = [set(load_file(path / f"weights-{rank:05d}-of-00002.safetensors")) for rank in (0, 1)]
    assert sorted(map(sorted, shares)) == [["a.weight"], ["head.bias"]]
    found = newest(tmp_path, MINE)
    assert found is not None
    assert_same(found.state.weights, state().weights)
    assert found.state.slots.keys() == {"a.weight"}
    assert_same(found.state.slots["a.weight"].tensors, state().slots["a.weight"].tensors)
    # A share that is lost is missed.
    (path / "weights-00001-of-00002.safetensors").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"weights-00001-of-00002.safetensors: cannot be read"):
        load_weights(path, "m")


def test_nothing_counts_until_it_is_committed(tmp_path: Path) -> None:
    path = path_of(tmp_path, 3)
    draft = Draft(path, state(), rank=0, ranks=1, token="t")
    files = draft.files()
    assert set(files) == {WEIGHTS, SLOTS}
    assert newest(tmp_path, MINE) is None
    assert not path.exists()
    made = draft.commit(files, MINE, phase="head", history=HISTORY)
    found = newest(tmp_path, MINE)
    assert found is not None
    assert (made.path, made.phase, made.state.step) == (path, "head", found.state.step)


def test_a_draft_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("training.draft.save_file", fail)
    draft = Draft(path_of(tmp_path, 3), state(), rank=0, ranks=1, token="t")
    with pytest.raises(OSError, match="no space left on device"):
        draft.files()
    assert newest(tmp_path, MINE) is None


def test_a_directory_that_goes_away_is_waited_for_and_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a share that is not mounted for a while: what is made in its place would hide what comes back."""
    sweep, elsewhere = tmp_path / "sweep", tmp_path / "elsewhere"
    path = path_of(sweep / "trials" / "0001", 3)
    path.parent.mkdir(parents=True)

    sweep.rename(elsewhere)
    draft = Draft(path, state(), rank=0, ranks=1, token="t")
    assert not draft.written(0.3)
    assert not sweep.exists()
    elsewhere.rename(sweep)
    files = draft.files()

    sweep.rename(elsewhere)
    back = threading.Timer(0.3, elsewhere.rename, [sweep])
    back.start()
    made = draft.commit(files, MINE, phase="head", history=HISTORY)
    back.join()
    found = newest(path.parent, MINE)
    assert found is not None
    assert found.path == made.path == path
    assert [item.name for item in path.parent.iterdir()] == [path.name]

    sweep.rename(elsewhere)
    back = threading.Timer(0.3, elsewhere.rename, [sweep])
    back.start()
    again = newest(path.parent, MINE)  # not as if there were none
    back.join()
    assert again is not None
    assert again.path == path

    sweep.rename(elsewhere)
    monkeypatch.setenv("THAW_STORAGE_PATIENCE_S", "0.1")
    with pytest.raises(FileNotFoundError, match="sweep"):
        Draft(path_of(path.parent, 6), state(6), rank=0, ranks=1, token="t").files()
    with pytest.raises(FileNotFoundError, match="sweep"):
        newest(path.parent, MINE)
    assert not sweep.exists()


def test_a_file_system_that_refuses(tmp_path: Path) -> None:
    path = path_of(tmp_path, 3)
    (path.with_name(f".{path.name}.t") / WEIGHTS / "in the way").mkdir(parents=True)
    draft = Draft(path, state(), rank=0, ranks=1, token="t")
    with pytest.raises(OSError, match=rf"{WEIGHTS}: cannot be written: .*\(os error \d+\)"):
        draft.files()
    draft.discard()
    assert not list(tmp_path.iterdir())


def test_clean_removes_what_was_left(tmp_path: Path) -> None:
    kept = write(tmp_path, 3)
    Draft(path_of(tmp_path, 6), state(6), rank=0, ranks=1, token="dead").files()
    (tmp_path / "notes.txt").touch()
    assert len(list(tmp_path.iterdir())) == 3
    clean(tmp_path)
    assert {item.name for item in tmp_path.iterdir()} == {kept.name, "notes.txt"}
    assert newest(tmp_path, MINE) is not None
    clean(tmp_path / "absent")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [WEIGHTS, SLOTS, "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda file: file.write_bytes(b"")])
def test_damage_is_seen_and_the_one_before_is_used(name: str, damage: object, tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = write(tmp_path, 6)
    damage(path / name)  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"passed over, so the trial goes on from step-00000003: .*00006"):
        found = newest(tmp_path, MINE)
    assert found is not None
    assert found.state.step == 3
    shutil.rmtree(path_of(tmp_path, 3))
    with pytest.warns(UserWarning, match="no usable checkpoint, so the trial starts anew"):
        assert newest(tmp_path, MINE) is None
    if name != SLOTS:
        with pytest.raises(DamagedCheckpoint, match=r"step-00000006.*(cut short|cannot be read|altered)"):
            load_weights(path, "m")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"format"', "\x00\x01", '{"format": 3}'])
def test_a_manifest_that_is_garbage(text: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    (path / "manifest.json").write_text(text)
    with pytest.raises(DamagedCheckpoint, match="step-00000003"):
        read_manifest(path)
    with pytest.warns(UserWarning, match="no usable checkpoint, so the trial starts anew"):
        assert newest(tmp_path, MINE) is None


def test_an_altered_manifest(tmp_path: Path) -> None:
    """Each of its values counts: a wrong step would be another trial."""
    path = write(tmp_path)
    whole = json.loads((path / "manifest.json").read_text())
    for key, value in whole.items():
        if key != "format":
            changed = {"x": 1} if isinstance(value, dict) else 4
            (path / "manifest.json").write_text(json.dumps({**whole, key: changed}))
            with pytest.raises(DamagedCheckpoint):
                read_manifest(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**whole, "format": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format 99, this version reads 3") as error:
        newest(tmp_path, MINE)
    assert not isinstance(error.value, DamagedCheckpoint)


@pytest.mark.parametrize("part", ["model", "data", "settings"])
def test_a_foreign_one_is_refused(part: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(CheckpointError) as error:
        newest(tmp_path, replace(MINE, **{part: "other"}))
    assert str(error.value) == f"{path}: made with other {part}"
    if part == "model":
        with pytest.raises(CheckpointError, match="made from other pretrained weights than those at hand"):
            load_weights(path, "other")


def test_before_a_foreign_one_may_be_one_of_ours(tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = write(tmp_path, 6)
    other = asdict(replace(MINE, settings="other"))
    said = {**json.loads((path / "manifest.json").read_text()), "identity": other}
    (path / "manifest.json").write_text(json.dumps({**said, "sha256": digest(said)}))
    with pytest.warns(UserWarning, match="goes on from step-00000003: .*06: made with other settings"):
        found = newest(tmp_path, MINE)
    assert found is not None
    assert found.state.step == 3


def newest_there(team: Team, directory: Path) -> Any:
    """What a rank goes on from that has a directory of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = newest(directory / str(team.rank), MINE, team=team)
        except CheckpointError as error:
            return str(error)
    return found and found.state.step


def test_all_ranks_go_on_from_the_same_one(tmp_path: Path, pair: Crew) -> None:
    """One may not see yet what another has written: they would take different steps then."""
    for rank, steps in ((0, (3, 6, 9)), (1, (3, 6))):
        for step in steps:
            write(tmp_path / str(rank), step)
    assert pair.run(newest_there, tmp_path) == [6, 6]
    truncate(path_of(tmp_path / "0", 6) / SLOTS)
    assert pair.run(newest_there, tmp_path) == [3, 3]
    shutil.rmtree(tmp_path / "0")
    assert pair.run(newest_there, tmp_path) == [None, None]
    manifest = path_of(tmp_path / "1", 6) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 99'))
    write(tmp_path / "0", 6)
    assert len({str(said) for said in pair.run(newest_there, tmp_path)}) == 1


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = write(tmp_path)
    torch.save({"a.weight": torch.zeros(3)}, path / WEIGHTS)
    with pytest.raises(DamagedCheckpoint):
        load_weights(path, "m")


def test_identity_is_of_what_the_mathematics_depends_on(make_trial: MakeTrial) -> None:
    config = make_trial()

    def of(**changes: object) -> Identity:
        training = replace(config.training, **changes)  # type: ignore[arg-type]
        return checkpoint.identity(replace(config, training=training), model="m", data="d")

    assert of(zero=ZeroConfig(stage=3)) == of(micro_batch_size=3) == of(log_every=1) == of()
    assert of(activation_checkpointing=True) == of()
    for key, value in asdict(config.training).items():
        if key not in {"zero", "micro_batch_size", "activation_checkpointing", "log_every", "unfreezing"}:
            changed = {
                "class_weights": "balanced",
                "dropout": 0.3,
                "early_stopping": EarlyStoppingConfig(patience=1),
                "lr_schedule": "constant",
                "optimizer": "sgd",
                "precision": "bf16",
                "warmup_steps": 0,
            }
            assert of(**{key: changed[key] if key in changed else value + 1}) != of(), key
    assert of(unfreezing=replace(config.training.unfreezing, depth=2)) != of()
    other = checkpoint.identity(replace(config, seed=6), model="m", data="d")
    assert other.settings != of().settings
