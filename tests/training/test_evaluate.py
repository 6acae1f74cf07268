from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.conftest import Crew, MakeTrial, Recorder, plain
from tests.training.trials import batch_of
from training.config import LimitConfig, PrefixStoreConfig, TrialConfig, UnfreezingConfig, ZeroConfig
from training.data import Split
from training.evaluate import evaluate
from training.loop import train
from training.team import Team
from training.workspace import Workspace

CPU = torch.device("cpu")


class Whole:
    """The pretrained model in the engine's place."""

    def __init__(self, module: Any) -> None:
        self.module = module.train()

    def evaluated(self, **inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.module(**inputs).logits


def split_of(setting: Any, count: int) -> Split:
    whole = setting.data.validation
    return Split(
        ids=whole.ids, segments=None, offsets=whole.offsets[: count + 1], labels=whole.labels[:count]
    )


def measure(
    team: Team, config: TrialConfig, count: int, boundary: int, batch_tokens: int = 2_048
) -> dict[str, float]:
    setting = Workspace(team, prefix_store=PrefixStoreConfig(mode="recompute")).open(config)
    data = replace(setting.data, validation=split_of(setting, count))
    feed = replace(setting.frozen, data=data, probes={}).feed(boundary, torch.float32, CPU)
    suffix = setting.blocks.suffix(boundary)
    fresh = setting.fresh_weights(0)
    with torch.no_grad():
        for name, parameter in suffix.named_parameters():
            if name in fresh:
                parameter.copy_(fresh[name])
    feed.open("validation")
    live: Any = Whole(suffix)
    return evaluate(live, feed, "validation", task=setting.task, team=team, batch_tokens=batch_tokens)


def directly(workspace: Workspace, config: TrialConfig, count: int) -> dict[str, float]:
    """One example at a time, in order, without padding."""
    setting = workspace.open(config)
    split = split_of(setting, count)
    model: Any = setting.blocks.suffix(-1).eval()
    with torch.no_grad():
        for name, tensor in setting.fresh_weights(0).items():
            model.get_parameter(name).copy_(tensor)
        rows = []
        for row in range(count):
            ids = torch.from_numpy(np.array(split.ids[split.offsets[row] : split.offsets[row + 1]], np.int64))
            rows.append(model(input_ids=ids[None]).logits)
    metrics = setting.task.compute(torch.cat(rows).numpy(), np.asarray(split.labels))
    return {f"eval/{name}": value for name, value in metrics.items()}


@pytest.mark.parametrize("boundary", [-1, 2])
def test_metrics_are_those_of_the_examples_one_by_one(
    boundary: int, make_trial: MakeTrial, workspace: Workspace
) -> None:
    config = plain(make_trial())  # the model's own dropout, which evaluation must not feel
    found = measure(workspace.team, config, 30, boundary, batch_tokens=100)
    assert found == pytest.approx(directly(workspace, config, 30), abs=1e-5)
    assert all(isinstance(value, float) for value in found.values())


def measure_each(team: Team, config: TrialConfig) -> list[dict[str, float]]:
    """With fewer batches than workers, as many, an odd number."""
    sizes = ((2048, 30), (2048, 1), (200, 30), (100, 29), (150, 30))
    return [measure(team, config, count, 2, batch_tokens=tokens) for tokens, count in sizes]


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_two_workers_measure_what_one_does(make_trial: MakeTrial, workspace: Workspace, pair: Crew) -> None:
    config = make_trial()
    alone = measure_each(workspace.team, config)
    first, second = pair.run(measure_each, config)
    assert first == second
    assert first == alone


def test_batches_of_tokens(make_trial: MakeTrial, workspace: Workspace) -> None:
    setting = workspace.open(make_trial())
    data = setting.data
    feed = setting.frozen.feed(-1, torch.float32, CPU)
    batch, labels = batch_of(feed, "validation", np.array([3, 0]))
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"].sum(1).tolist() == data.validation.lengths[[3, 0]].tolist()
    longest = int(data.validation.lengths[[3, 0]].max())
    assert batch["input_ids"].shape[1] == longest  # in bf16, whose kernels are made for shapes, fewer widths
    wide, _ = batch_of(setting.frozen.feed(-1, torch.bfloat16, CPU), "validation", np.array([3, 0]))
    assert wide["input_ids"].shape[1] == min(-(-longest // 8) * 8, 24)
    assert labels.tolist() == data.validation.labels[[3, 0]].tolist()
    assert {tensor.dtype for tensor in (*batch.values(), labels)} == {torch.int64}


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("stage", [0, 3])
def test_a_trial_with_one_validation_example(
    stage: int, make_trial: MakeTrial, team: Team, tmp_path: Path
) -> None:
    config = make_trial(unfreezing=UnfreezingConfig(schedule="top"), zero=ZeroConfig(stage=stage))  # type: ignore[arg-type]
    config = replace(config, data=replace(config.data, limit=LimitConfig(validation=1)))
    told = Recorder()
    train(config, workspace=Workspace(team), reporter=told, directory=tmp_path)
    assert told.evaluations[0].metrics["eval/accuracy"] in (0.0, 1.0)
