from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import MakeTrial, assert_same
from training import checkpoint
from training.checkpoint import (
    Checkpoint,
    CheckpointError,
    DamagedCheckpoint,
    Identity,
    State,
    load_weights,
    newest,
    path_of,
    read_manifest,
    save,
)
from training.config import ZeroConfig
from training.optim import Moments

MINE = Identity(model="m", data="d", settings="s")


def state(step: int = 3, width: int = 4) -> State:
    draw = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(width, 3, generator=draw) for name in ("a.weight", "head.bias")}
    moment = Moments(
        exp_avg=torch.randn(width, 3, generator=draw),
        exp_avg_sq=torch.rand(width, 3, generator=draw),
        steps=2,
    )
    return State(step=step, weights=weights, moments={"a.weight": moment}, loss_scale=512.0, seconds=1.25)


def write(directory: Path, step: int = 3, identity: Identity = MINE) -> Path:
    path = path_of(directory, step)
    metrics = {"eval/accuracy": 0.1 + 0.2, "eval/loss": float("nan")}
    save(Checkpoint(path=path, state=state(step), phase="head", metrics=metrics), identity)
    return path


def test_round_trip(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "with-parents"
    path = write(directory)
    found = newest(directory, MINE)
    assert found is not None
    assert (found.path, found.phase, found.state.step) == (path, "head", 3)
    assert (found.state.loss_scale, found.state.seconds) == (512.0, 1.25)
    assert found.metrics["eval/accuracy"] == 0.1 + 0.2
    assert_same(found.state.weights, state().weights)
    (name, moment), *rest = found.state.moments.items()
    expected = state().moments["a.weight"]
    assert (name, moment.steps, rest) == ("a.weight", 2, [])
    assert torch.equal(moment.exp_avg, expected.exp_avg)
    assert torch.equal(moment.exp_avg_sq, expected.exp_avg_sq)
    assert_same(load_weights(path, "m"), state().weights)


def test_files_are_safetensors_and_a_manifest(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert {file.name for file in path.iterdir()} == {
        "manifest.json", "weights.safetensors", "moments.safetensors"
    }  # fmt: skip
    assert set(load_file(path / "weights.safetensors")) == {"a.weight", "head.bias"}
    assert set(load_file(path / "moments.safetensors")) == {"exp_avg/a.weight", "exp_avg_sq/a.weight"}
    assert [item.name for item in tmp_path.iterdir()] == ["step-00000003"]


def test_bytes_are_in_proportion_to_what_thawed(tmp_path: Path) -> None:
    sizes = []
    for step, width in ((1, 10), (2, 10_000)):
        made = Checkpoint(path=path_of(tmp_path, step), state=state(step, width), phase="head", metrics={})
        save(made, MINE)
        sizes.append(sum(file.stat().st_size for file in made.path.iterdir()))
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

    for name in ("_describe", "save_file"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, fail)
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path, 6)
        assert not path_of(tmp_path, 6).exists()
        found = newest(tmp_path, MINE)
        assert found is not None
        assert found.state.step == 3
    write(tmp_path, 6)  # what lies about is no hindrance
    assert sorted(item.name for item in tmp_path.iterdir()) == ["step-00000003", "step-00000006"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["weights.safetensors", "moments.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.filterwarnings("ignore:no usable checkpoint")
def test_damage_is_seen_and_the_one_before_is_used(name: str, damage: object, tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = write(tmp_path, 6)
    damage(path / name)  # type: ignore[operator]
    found = newest(tmp_path, MINE)
    assert found is not None
    assert found.state.step == 3
    shutil.rmtree(path_of(tmp_path, 3))
    assert newest(tmp_path, MINE) is None
    if name != "moments.safetensors":
        with pytest.raises(DamagedCheckpoint, match=r"step-00000006.*(cut short|cannot be read|altered)"):
            load_weights(path, "m")


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"format"', "\x00\x01", '{"format": 1}'])
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
    with pytest.raises(CheckpointError, match="checkpoint format 99, this version reads 1") as error:
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


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = write(tmp_path)
    torch.save({"a.weight": torch.zeros(3)}, path / "weights.safetensors")
    with pytest.raises(DamagedCheckpoint):
        load_weights(path, "m")


def test_identity_is_of_what_the_mathematics_depends_on(make_trial: MakeTrial) -> None:
    config = make_trial()

    def of(**changes: object) -> Identity:
        training = replace(config.training, **changes)  # type: ignore[arg-type]
        return checkpoint.identity(replace(config, training=training), model="m", data="d")

    assert of(zero=ZeroConfig(stage=3)) == of(micro_batch_size=3) == of(log_every=1) == of()
    for key, value in asdict(config.training).items():
        if key not in {"zero", "micro_batch_size", "log_every", "unfreezing"}:
            changed = {"lr_schedule": "constant", "precision": "bf16", "dropout": 0.3}.get(key)
            assert of(**{key: value + 1 if changed is None else changed}) != of(), key
    assert of(unfreezing=replace(config.training.unfreezing, depth=2)) != of()
    other = checkpoint.identity(replace(config, seed=6), model="m", data="d")
    assert other.settings != of().settings
