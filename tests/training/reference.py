"""A trial in plain torch: the whole model, whole batches, one AdamW over the whole run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.training.trials import batch_of
from training import batches, optim, suffix
from training.config import TrialConfig
from training.plan import plan
from training.rng import derive
from training.workspace import Setting


def reference(
    config: TrialConfig, setting: Setting, class_weights: Tensor | None = None
) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of every step and the final weights, on the CPU in fp32. Without dropout."""
    training, data, blocks = config.training, setting.data, setting.blocks
    course = plan(training, num_blocks=blocks.num_blocks, num_examples=len(data.train), seed=config.seed)
    model: Any = blocks.suffix(-1).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = nn.Linear  # and not one that multiplies in another way
    feed = setting.frozen.feed(-1, torch.float32, torch.device("cpu"))
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in setting.fresh_weights(config.seed).items():
            named[name].copy_(tensor)
    adam = torch.optim.AdamW(
        [{"params": [p], "weight_decay": training.weight_decay * (p.dim() > 1)} for p in named.values()],
        eps=training.adam_epsilon,
    )
    losses: list[float] = []
    for stretch in course.stretches:
        for name, parameter in named.items():
            parameter.requires_grad_(suffix.is_thawed(stretch.phase, blocks, name))
        for step in range(stretch.start, stretch.stop):
            epoch, index = divmod(step, course.steps_per_epoch)
            order = derive(config.seed, "batches")
            rows = batches.epoch_batches(data.train.lengths, training.batch_size, order, epoch)[index]
            inputs, labels = batch_of(feed, "train", rows)
            adam.zero_grad(set_to_none=True)
            loss = cross_entropy(
                model(**inputs).logits,
                labels,
                class_weights,
                label_smoothing=training.label_smoothing,
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
            factor = optim.lr_factor(
                step, total_steps=course.total_steps, phase_start=stretch.start, training=training
            )
            for group, name in zip(adam.param_groups, named, strict=True):
                height = blocks.height(blocks.unit(name))
                group["lr"] = training.learning_rate * training.layerwise_lr_decay**height * factor
            adam.step()
            losses.append(loss.item())
    return losses, {name: tensor.detach() for name, tensor in named.items()}
