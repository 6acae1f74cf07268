from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from tests.training.conftest import MakeTrial, Recorder
from training.config import TrainingConfig, ZeroConfig
from training.loop import train
from training.optimizers import OPTIMIZERS, check
from training.workspace import Workspace


def configured(optimizer: str, **zero: Any) -> TrainingConfig:
    return TrainingConfig(optimizer=optimizer, zero=ZeroConfig(**zero))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_one_kernel_updates_a_tensor(name: str) -> None:
    """All of its arithmetic at once, on a CPU too."""
    weight = torch.nn.Parameter(torch.ones(3))
    made = OPTIMIZERS[name].build([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}], configured(name))
    weight.grad = torch.ones(3)
    with torch.profiler.profile() as profile:
        made.step()
    kernels = {event.key for event in profile.key_averages()}
    assert f"aten::_fused_{name}_" in kernels


def test_every_optimizer_of_the_settings_is_in_the_table() -> None:
    assert set(get_args(get_type_hints(TrainingConfig)["optimizer"])) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("optimizer", "zero", "message"),
    [
        (
            "adafactor",
            {"stage": 2},
            "zero.stage: 2 cuts matrices apart, and adafactor needs them whole; "
            "use stage 0, or optimizer adamw or sgd",
        ),
        (
            "adamw",
            {"stage": 0, "offload": "optimizer"},
            "zero.offload: optimizer needs zero.stage 1, 2 or 3, got 0",
        ),
        (
            "adamw",
            {"stage": 2, "offload": "parameters"},
            "zero.offload: parameters needs zero.stage 3, got 2",
        ),
        (
            "sgd",
            {"stage": 2, "offload": "optimizer"},
            "zero.offload: works with optimizer adamw, got sgd",
        ),
    ],
)
def test_what_does_not_go_together(optimizer: str, zero: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^zero\.") as error:
        check(configured(optimizer, **zero))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("optimizer", "zero"),
    [
        ("adafactor", {"stage": 0}),
        *((name, {"stage": stage}) for name in ("adamw", "sgd") for stage in range(4)),
        *(("adamw", {"stage": stage, "offload": "optimizer"}) for stage in (1, 2, 3)),
        ("adamw", {"stage": 3, "offload": "parameters"}),
    ],
)
def test_what_goes_together(optimizer: str, zero: dict[str, Any]) -> None:
    check(configured(optimizer, **zero))


def test_a_trial_checks(make_trial: MakeTrial, workspace: Workspace, tmp_path: Path) -> None:
    config = make_trial(optimizer="adafactor", zero=ZeroConfig(stage=1))
    with pytest.raises(ValueError, match=r"zero.stage: 1 cuts matrices apart"):
        train(config, workspace=workspace, reporter=Recorder(), directory=tmp_path)
