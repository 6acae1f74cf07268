"""What a gang keeps warm between trials: the pretrained model, the tokenised data."""

from __future__ import annotations

import copy
import gc
import hashlib
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from torch import Tensor

from training import attention, linear
from training.blocks import Blocks
from training.config import DataConfig, ModelConfig, PrefixStoreConfig, TaskConfig, TrialConfig
from training.data import Data, cache_root, prepare
from training.models import model_directory
from training.prefix import Frozen, shelves
from training.rng import derive
from training.sizes import Sizes
from training.tasks import TASKS, Task
from training.team import Team


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One model, on one task, on one data set. Trials read it and never write to it."""

    blocks: Blocks
    data: Data
    task: Task
    max_length: int
    fresh_names: tuple[str, ...]
    """Tensors that the pretrained model lacks: each trial draws its own."""
    checksums: dict[str, int]
    """Of every tensor of the model, as loaded."""
    fingerprint: str
    """Names, shapes and contents of the pretrained weights, as hex."""
    frozen: Frozen
    """What is computed of the examples once, as long as it is frozen."""
    limits: dict[str, Sizes] = field(default_factory=dict)
    """What is known not to run out of memory on this gang, where more did, by `sizes.key`."""
    proven: dict[str, int] = field(default_factory=dict)
    """The largest micro-batch that was measured to fit, by `sizes.key`."""

    def touched(self) -> list[str]:
        """The tensors of the model that were written to since it was loaded: none, ever."""
        named = self.blocks.model.named_parameters()
        return [name for name, tensor in named if checksum(tensor) != self.checksums[name]]

    def fresh_weights(self, seed: int) -> dict[str, Tensor]:
        """The tensors that the pretrained model lacks, drawn as its authors initialise them."""
        model = self.blocks.model
        owners = sorted({name.rpartition(".")[0] for name in self.fresh_names})
        drawn: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "head"))
            for owner in owners:
                module = copy.deepcopy(model.get_submodule(owner))
                for tensor in module.parameters():
                    tensor._is_hf_initialized = False  # type: ignore[attr-defined]
                model._init_weights(module)  # type: ignore[operator]
                drawn |= {f"{owner}.{name}": tensor.detach() for name, tensor in module.named_parameters()}
        return {name: drawn[name] for name in self.fresh_names}


class Workspace:
    """The settings that this process has opened. Trials on the same one start at once.

    Args:
        boundaries: see `Frozen.foreseen`.
    """

    def __init__(
        self,
        team: Team,
        cache: Path | None = None,
        prefix_store: PrefixStoreConfig | None = None,
        boundaries: tuple[int, ...] = (),
    ) -> None:
        self.team = team
        self._cache = cache
        self._store = prefix_store
        self._boundaries = boundaries
        self._unsettled = 0
        self._settings: dict[tuple[ModelConfig, TaskConfig, DataConfig], Setting] = {}

    def open(self, config: TrialConfig) -> Setting:
        """The setting of a trial, loaded at first use.

        Raises:
            ValueError: where model, data or columns are not there or do not fit.
        """
        key = (config.model, config.task, config.data)
        if key not in self._settings:
            if self._settings:
                # Another setting is another sweep's: memory for one is enough.
                self._settings.clear()
                gc.unfreeze()
            self._settings[key] = load(config, self._cache, self._store, self._boundaries)
            self._unsettled = 2
        if self._unsettled:
            # What is there now stays, and what the first trial imports, too. The collections at the end of
            # each phase, 0.3 s otherwise, need not look at it.
            self._unsettled -= 1
            gc.collect()
            gc.freeze()
        return self._settings[key]


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes: any changed bit changes it, and so does another order."""
    return zlib.crc32(tensor.detach().contiguous().numpy())  # type: ignore[arg-type]


def load(
    config: TrialConfig,
    cache: Path | None = None,
    prefix_store: PrefixStoreConfig | None = None,
    boundaries: tuple[int, ...] = (),
) -> Setting:
    """Read model and data of a trial; the data from the cache if they are in it.

    Raises:
        ValueError: where model, data or columns are not there or do not fit.
    """
    data = prepare(config.model, config.task, config.data, cache=cache)
    task = TASKS[config.task.type]
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # a new head is no news here
    model, report = task.model_class().from_pretrained(
        model_directory(config.model),
        trust_remote_code=config.model.trust_remote_code,
        num_labels=len(data.label_names),
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # a head for other classes is drawn anew
        output_loading_info=True,
    )
    model.config.pad_token_id = data.pad_id
    linear.adopt(model)
    attention.adopt()
    blocks = Blocks(model)
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        if blocks.unit(name) != "head":
            raise ValueError(
                f"model.name: {config.model.name}: {name} is {tuple(stored)} in the weights and "
                f"{tuple(wanted)} by config.json; give a model whose files belong together"
            )
    fresh = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    checksums = {name: checksum(tensor) for name, tensor in model.named_parameters()}
    described = [
        (name, tuple(tensor.shape), checksums[name])
        for name, tensor in model.named_parameters()
        if name not in fresh
    ]
    fingerprint = hashlib.sha256(repr(described).encode()).hexdigest()
    frozen = Frozen(
        blocks=blocks,
        data=data,
        fingerprint=fingerprint,
        cap=config.task.max_length,
        shelves=shelves(prefix_store or PrefixStoreConfig(), cache_root() if cache is None else cache),
        foreseen=boundaries,
    )
    return Setting(
        blocks=blocks,
        data=data,
        task=task,
        max_length=config.task.max_length,
        fresh_names=tuple(name for name in blocks.names if name in fresh),
        checksums=checksums,
        fingerprint=fingerprint,
        frozen=frozen,
    )
