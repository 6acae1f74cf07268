"""A phase made ready to train: its suffix, parameter groups, engine and frozen prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from torch import Tensor

from training import optim, suffix
from training.checkpoint import State
from training.engine import Engine, compute_dtype, engine
from training.optim import Group
from training.prefix import Feed, Rows
from training.schedules import Phase
from training.suffix import Weights
from training.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A phase that can train."""

    engine: Engine
    feed: Feed
    groups: Sequence[Group]
    before: dict[str, Tensor]
    """fp32 values of the thawed tensors, as the phase found them."""
    trial: Trial

    def losses(self, rows: Rows) -> Tensor:
        """Training loss of each of some training examples: fp32 [b], with gradient."""
        trial = self.trial
        inputs, labels = self.feed.batch(rows)
        return trial.setting.task.losses(
            self.engine(**inputs),
            labels,
            class_weights=trial.class_weights_there,
            label_smoothing=trial.config.training.label_smoothing,
        )


@contextmanager
def opened(trial: Trial, phase: Phase, state: State) -> Iterator[Opened]:
    """A phase at the weights and moments of `state`; its engine is closed at the end of the block."""
    training, team, setting = trial.config.training, trial.team, trial.setting
    blocks = setting.blocks
    boundary = suffix.boundary(phase, blocks, state.weights)
    with closing(setting.frozen.feed(boundary, compute_dtype(training.precision), team.device)) as feed:
        # Before there is an engine: what is frozen has the device to itself while the store is filled.
        feed.open("train", "validation")
        module = suffix.build(phase, blocks, state.weights, dropout=training.dropout).to(team.device)
        if training.activation_checkpointing:
            suffix.recompute_activations(module)
        thawed = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        present = Weights(blocks, state.weights)
        before = {name: present[name] for name in thawed}
        groups = optim.groups(
            thawed,
            blocks=blocks,
            shapes={name: tensor.shape for name, tensor in before.items()},
            ages={name: slots.steps for name, slots in state.slots.items()},
            training=training,
        )
        with engine(
            module,
            groups=groups,
            weights=state.weights,
            slots=state.slots,
            training=training,
            team=team,
            scaler=state.scaler,
        ) as live:
            del module
            yield Opened(engine=live, feed=feed, groups=groups, before=before, trial=trial)
