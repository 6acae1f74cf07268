"""What a task is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from training.config import TaskConfig


class RowError(ValueError):
    """A row that cannot be used. `row` counts from 0 in what was handed to the task."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Rows as token ids."""

    ids: list[list[int]]
    """Token ids of each row, unpadded."""
    segments: list[list[int]] | None
    """Token type ids of each row, where the model uses them."""
    labels: np.ndarray
    """int64 [rows], indices into the label names."""


class Task(Protocol):
    """One kind of task: its columns, its targets, its loss and its metrics."""

    @property
    def type(self) -> str:
        """As in `task.type`."""

    @property
    def metrics(self) -> Mapping[str, Literal["minimize", "maximize"]]:
        """What `compute` returns, and which way is better; reported as `eval/NAME`."""

    def columns(self, task: TaskConfig) -> tuple[str, ...]:
        """The columns of the data that the task reads."""

    def label_names(self, values: Sequence[object]) -> tuple[str, ...]:
        """The classes, from the labels of the training rows. Raises RowError, ValueError."""

    def encode(
        self,
        rows: Mapping[str, Sequence[object]],
        task: TaskConfig,
        tokenizer: Any,
        label_names: Sequence[str],
        *,
        max_length: int,
    ) -> Encoded:
        """Tokenise rows, given as columns; `max_length` tokens at most each. Raises RowError."""

    def model_class(self) -> Any:
        """The transformers auto class whose `from_pretrained` makes the model."""

    def losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """float32 [B], the loss of each example, from logits [B, C] and labels int64 [B].

        With `class_weights` float32 [C], each is to be divided by the sum of the labels' weights.
        """
        ...

    def compute(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """`metrics` over an evaluation set: logits [N, C], labels int64 [N]."""
