import pytest
import torch

from tests.training.conftest import tiny_model
from training.blocks import Blocks
from training.schedules import Phase
from training.suffix import Weights, boundary, build, is_thawed, set_modes

BLOCKS = Blocks(tiny_model())
HEAD = Phase(name="head", start_epoch=0.0, blocks=())
MIDDLE = Phase(name="middle", start_epoch=0.0, blocks=(1,), head=False)
GAPPY = Phase(name="gappy", start_epoch=0.0, blocks=(0, 2))
FULL = Phase(name="full", start_epoch=0.0, blocks=(0, 1, 2), embeddings=True)


def names(unit: object) -> list[str]:
    return [name for name in BLOCKS.names if BLOCKS.unit(name) == unit]


def test_weights_are_the_trials_own_over_the_pretrained() -> None:
    own = {"classifier.bias": torch.tensor([1.0, 2.0])}
    weights = Weights(BLOCKS, own)
    assert tuple(weights) == BLOCKS.names
    assert len(weights) == len(BLOCKS.names)
    assert weights["classifier.bias"] is own["classifier.bias"]
    pretrained = BLOCKS.model.get_parameter("classifier.weight")
    assert weights["classifier.weight"].data_ptr() == pretrained.data_ptr()
    assert not weights["classifier.weight"].requires_grad


@pytest.mark.parametrize(
    ("phase", "trained", "expected"),
    [
        (HEAD, [], 3),
        (HEAD, ["head"], 3),
        (HEAD, [2], 2),  # what trained before is no longer pretrained, so it cannot lie in the prefix
        (HEAD, [0, 2], 0),
        (HEAD, ["embeddings"], -1),
        (MIDDLE, [], 1),
        (MIDDLE, [2], 1),
        (GAPPY, [], 0),
        (FULL, [], -1),
    ],
)
def test_boundary(phase: Phase, trained: list[object], expected: int) -> None:
    own = {name: torch.zeros(()) for unit in trained for name in names(unit)}
    assert boundary(phase, BLOCKS, own) == expected


@pytest.mark.parametrize("phase", [HEAD, MIDDLE, GAPPY, FULL])
def test_build(phase: Phase) -> None:
    own = {name: Weights(BLOCKS, {})[name] + 1 for name in names(2)[:3]}
    module = build(phase, BLOCKS, own, dropout=0.25)
    units = {*phase.blocks, *(["head"] if phase.head else []), *(["embeddings"] if phase.embeddings else [])}
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, Weights(BLOCKS, own)[name])
        assert parameter.requires_grad == (BLOCKS.unit(name) in units) == is_thawed(phase, BLOCKS, name)
    assert {child.p for child in module.modules() if isinstance(child, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize("phase", [HEAD, MIDDLE, GAPPY, FULL])
def test_only_what_is_thawed_drops_out(phase: Phase) -> None:
    module = build(phase, BLOCKS, {name: Weights(BLOCKS, {})[name] for name in BLOCKS.names}, dropout=None)
    set_modes(module, phase, BLOCKS)
    found = {
        name.removesuffix(".dropout")
        for name, child in module.named_modules()
        if isinstance(child, torch.nn.Dropout) and child.training and child.p > 0
    }
    layers = [f"bert.encoder.layer.{block}" for block in phase.blocks]
    parts = ("attention.self", "attention.output", "output")
    expected = {f"{layer}.{part}" for layer in layers for part in parts}
    expected |= ({"dropout"} if phase.head else set()) | ({"bert.embeddings"} if phase.embeddings else set())
    assert found == expected
