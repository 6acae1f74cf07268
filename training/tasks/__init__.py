"""Tasks. A new one is one file and one line in `TASKS` (and its name in `TaskConfig.type`)."""

from training.tasks.sequence_classification import SequenceClassification
from training.tasks.task import Encoded, RowError, Task

__all__ = ["TASKS", "Encoded", "RowError", "Task"]

TASKS: dict[str, Task] = {task.type: task for task in (SequenceClassification(),)}
