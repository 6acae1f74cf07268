"""The frozen prefix: a frozen layer is data, the engine only ever holds the suffix.

What lies below the boundary neither trains nor drops out, so its output for an example is
a constant of the pretrained model. It is recomputed for each batch here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Turns a batch of tokens into what the suffix takes in.

    `module` holds the embeddings and the frozen blocks; None where nothing is frozen below.
    """

    module: nn.Module | None

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the suffix for `input_ids` and `attention_mask` (and `token_type_ids`), int64 [B, T].

        With a boundary: `inputs_embeds` [B, T, D] at the compute precision, and `attention_mask`.
        """
        if self.module is None:
            return batch
        with torch.no_grad():
            hidden = self.module(**batch).last_hidden_state
        return {"inputs_embeds": hidden, "attention_mask": batch["attention_mask"]}
