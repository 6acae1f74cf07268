"""Sequence classification: one of C classes for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training.tasks.task import Encoded, RowError

if TYPE_CHECKING:
    from torch import Tensor

    from training.config import TaskConfig


class SequenceClassification:
    """See `training.tasks.task.Task`."""

    type = "sequence-classification"
    metrics: Mapping[str, Literal["minimize", "maximize"]] = {
        "loss": "minimize",
        "accuracy": "maximize",
        "f1": "maximize",
        "matthews": "maximize",
    }

    def columns(self, task: TaskConfig) -> tuple[str, ...]:
        """Text, second text where there is one, and label."""
        return (task.text, *((task.text_pair,) if task.text_pair else ()), task.label)

    def label_names(self, values: Sequence[object]) -> tuple[str, ...]:
        """The distinct labels as strings, sorted; whole numbers in order of their value.

        Raises RowError for a label that is not text, a whole number or a bool, and ValueError
        where all are the same.
        """
        distinct: dict[str, object] = {}
        for row, value in enumerate(values):
            distinct.setdefault(_label_name(row, value), value)
        if len(distinct) < 2:
            raise ValueError(
                f"all {len(values)} labels are {next(iter(distinct))!r}; training needs at least two classes "
                f"(are the rows sorted by label, and cut by data.limit?)"
            )
        if all(isinstance(value, int) and not isinstance(value, bool) for value in distinct.values()):
            return tuple(sorted(distinct, key=int))
        return tuple(sorted(distinct))

    def encode(
        self,
        rows: Mapping[str, Sequence[object]],
        task: TaskConfig,
        tokenizer: Any,
        label_names: Sequence[str],
        *,
        max_length: int,
    ) -> Encoded:
        """Token ids with special tokens, cut to `max_length`. Raises RowError."""
        index = {name: i for i, name in enumerate(label_names)}
        labels = np.empty(len(rows[task.label]), np.int64)
        for row, value in enumerate(rows[task.label]):
            name = _label_name(row, value)
            if name not in index:
                seen = ", ".join(label_names[:10]) + (", ..." if len(label_names) > 10 else "")
                raise RowError(row, f"label {name!r} does not occur in the training data, which has {seen}")
            labels[row] = index[name]
        texts = [_texts(rows[column], column) for column in (task.text, task.text_pair) if column]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        for row, ids in enumerate(encoded["input_ids"]):
            if not ids:
                raise RowError(row, f"column {task.text!r} has no tokens: {texts[0][row]!r}")
        return Encoded(ids=encoded["input_ids"], segments=encoded.get("token_type_ids"), labels=labels)

    def model_class(self) -> Any:
        """AutoModelForSequenceClassification."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross-entropy of each example, in float32."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(
            logits.float(), labels, class_weights, reduction="none", label_smoothing=label_smoothing
        )

    def compute(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Mean cross-entropy, accuracy, macro F1 and Matthews correlation (scikit-learn's)."""
        # Imported at the first evaluation: it takes a second, which reading a sweep need not wait for.
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        scores = np.asarray(logits, np.float64)
        scores = scores - scores.max(axis=1, keepdims=True)
        losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(labels)), labels]
        predicted = scores.argmax(axis=1)
        return {
            "loss": float(losses.mean()),
            "accuracy": float(accuracy_score(labels, predicted)),
            "f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
            "matthews": float(matthews_corrcoef(labels, predicted)),
        }


def _label_name(row: int, value: object) -> str:
    if isinstance(value, str | int):
        return str(value)
    raise RowError(
        row, f"label {value!r} is a {type(value).__name__}; labels must be text, whole numbers or true/false"
    )


def _texts(values: Sequence[object], column: str) -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise RowError(row, f"column {column!r} holds {value!r} ({type(value).__name__}), not text")
    return list(values)  # type: ignore[arg-type]
