from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification, BertTokenizerFast

from tests.training.conftest import MakeTrial, Recorder, assert_same, tiny_config
from training.config import LimitConfig, ModelConfig
from training.loop import train
from training.team import Team
from training.workspace import Workspace, checksum


def test_a_setting_is_loaded_once(make_trial: MakeTrial, team: Team) -> None:
    workspace = Workspace(team)
    first = workspace.open(make_trial())
    assert workspace.open(make_trial(learning_rate=1e-4, seed=9)) is first
    other = make_trial()
    other = replace(other, data=replace(other.data, limit=LimitConfig(train=20)))
    assert len(workspace.open(other).data.train) == 20
    # Memory for one is enough.
    assert workspace.open(make_trial()) is not first


def test_collections_pass_over_what_stays(make_trial: MakeTrial, team: Team) -> None:
    gc.unfreeze()
    workspace = Workspace(team)
    model = weakref.ref(workspace.open(make_trial()).blocks.model)
    workspace.open(make_trial())
    assert len(gc.get_objects()) < 0.1 * gc.get_freeze_count()
    other = make_trial()
    workspace.open(replace(other, data=replace(other.data, limit=LimitConfig(train=20))))
    gc.collect()
    assert model() is None, "what is let go of is freed"


def test_what_a_setting_holds(make_trial: MakeTrial, workspace: Workspace, team: Team) -> None:
    setting = workspace.open(make_trial())
    assert setting.data.label_names == ("negative", "positive")
    assert (len(setting.data.train), len(setting.data.validation)) == (44, 30)
    assert setting.blocks.num_blocks == 3
    assert {tensor.dtype for tensor in setting.blocks.model.parameters()} == {torch.float32}
    assert setting.fresh_names == (
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"
    )  # fmt: skip
    # The random head that came with loading does not enter the fingerprint.
    torch.manual_seed(99)
    again = Workspace(team).open(make_trial())
    assert again.fingerprint == setting.fingerprint
    assert set(again.checksums) == set(setting.blocks.names)


def test_fresh_weights(make_trial: MakeTrial, workspace: Workspace, team: Team) -> None:
    setting = workspace.open(make_trial())
    state = torch.get_rng_state()
    drawn = setting.fresh_weights(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(42)
    assert_same(setting.fresh_weights(1), drawn)
    assert_same(Workspace(team).open(make_trial()).fresh_weights(1), drawn)
    other = setting.fresh_weights(2)
    assert all(torch.equal(other[name], drawn[name]) != name.endswith("weight") for name in drawn)
    # As the model's authors draw: normal of `initializer_range`, biases zero.
    assert drawn["bert.pooler.dense.weight"].std() == pytest.approx(0.3, rel=0.3)
    assert not drawn["classifier.bias"].any()
    assert setting.touched() == []


def test_a_head_for_other_classes_is_drawn_anew(
    make_trial: MakeTrial, tiny_bert: Path, team: Team, tmp_path: Path
) -> None:
    """A model that was fine-tuned on three classes serves a task of two."""
    model = BertForSequenceClassification(tiny_config(num_labels=3))
    model.save_pretrained(tmp_path / "model")
    BertTokenizerFast.from_pretrained(tiny_bert).save_pretrained(tmp_path / "model")
    config = replace(make_trial(), model=ModelConfig(name=str(tmp_path / "model")))
    workspace = Workspace(team)
    setting = workspace.open(config)
    assert setting.fresh_names == ("classifier.weight", "classifier.bias")
    assert {name: tensor.shape for name, tensor in setting.fresh_weights(1).items()} == {
        "classifier.weight": (2, 10),
        "classifier.bias": (2,),
    }
    assert torch.equal(
        setting.blocks.model.get_parameter("bert.pooler.dense.weight"), model.bert.pooler.dense.weight
    )
    train(config, workspace=workspace, reporter=Recorder(), directory=tmp_path / "trial")


def test_weights_that_do_not_fit_the_configuration(
    make_trial: MakeTrial, tiny_bert: Path, team: Team, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | {"vocab_size": 40}))
    config = replace(make_trial(), model=ModelConfig(name=str(tmp_path / "model")))
    with pytest.raises(ValueError, match="belong together") as error:
        Workspace(team).open(config)
    assert str(error.value) == (
        f"model.name: {tmp_path / 'model'}: bert.embeddings.word_embeddings.weight is (30, 10) in the "
        f"weights and (40, 10) by config.json; give a model whose files belong together"
    )


def test_checksum() -> None:
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    expected = checksum(tensor)
    assert checksum(tensor.clone()) == expected
    assert 0 <= expected < 2**32
    # Rows that changed places, as in a vocabulary of another order, are other weights.
    assert checksum(tensor.flip(0)) != expected
    assert checksum(tensor.t().clone().t()) == expected
    for row, column in ((0, 0), (4, 6)):
        changed = tensor.clone()
        changed[row, column] = torch.nextafter(changed[row, column], torch.tensor(10.0))
        assert checksum(changed) != expected
    assert checksum(torch.tensor([0.0])) != checksum(torch.tensor([-0.0]))
    assert checksum(torch.tensor([float("nan")])) == checksum(torch.tensor([float("nan")]))


def test_touched(make_trial: MakeTrial, team: Team) -> None:
    setting = Workspace(team).open(make_trial())
    with torch.no_grad():
        setting.blocks.model.get_parameter("classifier.bias")[0] += 1
    assert setting.touched() == ["classifier.bias"]


def test_pretrained_weights_are_mapped_from_their_file(make_trial: MakeTrial, workspace: Workspace) -> None:
    """So all gangs of a node share their memory, and no gang waits for a copy."""
    setting = workspace.open(make_trial())
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, path = line.split()
        if path.endswith("/model.safetensors"):
            start, _, end = place.partition("-")
            spans.append((int(start, 16), int(end, 16)))
    for name, tensor in setting.blocks.model.named_parameters():
        if name not in setting.fresh_names:
            assert any(start <= tensor.data_ptr() < end for start, end in spans), name
