"""The T5 text encoder of published models: loaded when prompts are to be encoded, let go before the denoising.

Shape letters: B prompts, L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pab.family import LoadRequest
from pab.parallel.mesh import Axis
from pab.text.states import TextStates
from pab.text.text_encoders import (
    encode_batches,
    length_warnings,
    load_tokenizer,
    read_encoder_config,
    tokenize,
    transformers_library,
)
from pab.weights.checkpoint import dtype_of, load_module, read_tensors

if TYPE_CHECKING:
    from torch import nn

_SHARED, _EMBEDDED = "shared.weight", "encoder.embed_tokens.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Text:
    """Encodes prompts with an encoder of the T5 line.

    `folder`: config.json and weights; `tokenizer_folder`: spiece.model or tokenizer.json. The ranks of `axis` share the
    batches, so all of them must be given the same prompts; a rank that gets no batch loads nothing. `architecture`: "T5",
    or "UMT5" whose every layer has position biases of its own. `reads_padding`: whether tokens attend to the padding
    behind a prompt, as some models were published with.
    """

    folder: Path
    tokenizer_folder: Path
    dtype: torch.dtype
    device: torch.device
    max_length: int
    axis: Axis
    architecture: str = "T5"
    reads_padding: bool = False

    def __call__(self, texts: Sequence[str]) -> TextStates:
        """Returns the states of all texts on the CPU, [B, max_length, C]. Collective over `axis`."""
        tokenizer = load_tokenizer(self.tokenizer_folder)
        tokens, mask = tokenize(tokenizer, texts, self.max_length)
        states = encode_batches(
            (tokens, mask),
            load=self._load,
            encode=self._states,
            row_shape=(self.max_length, int(self._config().d_model)),
            like=torch.empty(0, dtype=self.dtype, device=self.device),
            rows_per_batch=4,
            axis=self.axis,
        )
        return TextStates(
            y_BLC=states,
            mask_BL=mask,
            warnings=tuple(length_warnings(tokenizer, text, self.max_length) for text in texts),
        )

    def _states(self, encoder: Any, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        seen = torch.ones_like(mask_BL) if self.reads_padding else mask_BL
        return encoder(input_ids=tokens_BL, attention_mask=seen).last_hidden_state

    def _load(self) -> nn.Module:
        encoder_class = getattr(transformers_library(), f"{self.architecture}EncoderModel")
        config, tensors = self._config(), read_tensors(self.folder)
        # One table under two names; files keep one of them or both.
        for name, other in ((_SHARED, _EMBEDDED), (_EMBEDDED, _SHARED)):
            if name not in tensors and other in tensors:
                tensors[name] = tensors[other]
        return load_module(
            lambda: encoder_class(config),
            tensors,
            what=f"{self.architecture} encoder in {self.folder}",
            dtype=self.dtype,
            device=self.device,
            surplus_ok=("decoder.*", "lm_head.*"),
        )

    def _config(self) -> Any:
        return read_encoder_config(self.folder, f"{self.architecture}Config")


def open_t5_text(
    request: LoadRequest,
    *,
    folder: Path,
    tokenizer_folder: Path,
    max_length: int,
    architecture: str = "T5",
    reads_padding: bool = False,
) -> T5Text:
    """Returns the encoder of a model that is loaded as `request` says; its weights are read when texts are encoded."""
    return T5Text(
        folder=folder,
        tokenizer_folder=tokenizer_folder,
        dtype=dtype_of(request.precision),
        device=torch.device(request.device),
        max_length=max_length,
        axis=request.clip_axis or Axis(),
        architecture=architecture,
        reads_padding=reads_padding,
    )
