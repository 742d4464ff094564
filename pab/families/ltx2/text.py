"""LTX-2's text: the states of all layers of a Gemma 3, and what two small transformers make of them for video and sound.

Shape letters: B prompts, L tokens, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pab.families.ltx2.config import Ltx2Model
from pab.family import LoadRequest
from pab.library.parts import load_part
from pab.parallel.mesh import Axis
from pab.text.states import TextStates
from pab.text.text_encoders import (
    encode_batches,
    length_warnings,
    load_json_tokenizer,
    read_encoder_config,
    tokenize,
    transformers_library,
)
from pab.weights.checkpoint import CheckpointError, dtype_of, load_module, read_config, read_tensors

LIBRARY_MODULE = "diffusers.pipelines.ltx2"
"""Where the library has the parts of this model that it does not offer at its top."""
_CONNECTORS = {"_class_name": "LTX2TextConnectors"}
_LANGUAGE = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(.*)$")
"""Keys of the half of Gemma 3 that reads text, as older and newer releases of the library write them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ltx2Text:
    """Encodes prompts. The ranks of `axis` share the batches, each of one prompt: its states of all layers are large.

    `root`: the folder that holds `text_encoder/`, `tokenizer/` and `connectors/`.
    """

    root: Path
    model: Ltx2Model
    dtype: torch.dtype
    device: torch.device
    axis: Axis

    def __call__(self, texts: Sequence[str]) -> TextStates:
        """Returns states [B, L, C] on the CPU: the video's channels, then the sound's. Collective over `axis`."""
        tokenizer = load_json_tokenizer(self.root / "tokenizer")
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        stripped, length = [text.strip() for text in texts], self.model.max_text_tokens
        tokens, mask = tokenize(tokenizer, stripped, length)
        states = encode_batches(
            (tokens, mask),
            load=self._load,
            encode=_states,
            row_shape=(length, sum(self._widths())),
            like=torch.empty(0, dtype=self.dtype, device=self.device),
            rows_per_batch=1,
            axis=self.axis,
        )
        return TextStates(
            y_BLC=states,
            # In the place of padding the connectors have put tokens of their own.
            mask_BL=torch.ones_like(mask),
            warnings=tuple(length_warnings(tokenizer, text, length) for text in stripped),
        )

    def _widths(self) -> list[int]:
        folder = self.root / "connectors"
        config = read_config(folder)
        widths = []
        for stream in ("video", "audio"):
            registers = config.get(f"{stream}_connector_num_learnable_registers", 128)
            if not isinstance(registers, int) or self.model.max_text_tokens % registers:
                raise CheckpointError(
                    f"{folder / 'config.json'}: {stream}_connector_num_learnable_registers={registers!r}, needs a number "
                    f"that divides {self.model.max_text_tokens}"
                )
            sizes = (("num_attention_heads", 30), ("attention_head_dim", 128))
            heads, head_dim = (int(str(config.get(f"{stream}_connector_{name}", usual))) for name, usual in sizes)
            widths.append(heads * head_dim)
        return widths

    def _load(self) -> tuple[nn.Module, nn.Module]:
        connectors = load_part(
            self.root / "connectors", _CONNECTORS, dtype=self.dtype, device=self.device, module=LIBRARY_MODULE
        )
        return self._load_gemma(), connectors

    def _load_gemma(self) -> nn.Module:
        folder = self.root / "text_encoder"
        config = read_encoder_config(folder, "Gemma3Config").text_config

        def build() -> nn.Module:
            module = transformers_library().Gemma3TextModel(config)
            with torch.device("cpu"):  # computed, in no file
                module.rotary_emb = type(module.rotary_emb)(config)
                module.embed_tokens.embed_scale = torch.tensor(float(config.hidden_size**0.5))
            return module

        found = {match[1]: value for key, value in read_tensors(folder).items() if (match := _LANGUAGE.match(key))}
        what = f"Gemma 3 in {folder}"
        return load_module(build, found, what=what, dtype=self.dtype, device=self.device).to(self.device)


def open_ltx2_text(model: Ltx2Model, root: Path, request: LoadRequest) -> Ltx2Text:
    """Returns the encoders of a model that is loaded as `request` says; weights are read when texts are encoded."""
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    return Ltx2Text(root=root, model=model, dtype=dtype, device=device, axis=request.clip_axis or Axis())


def _states(encoders: Any, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
    gemma, connectors = encoders
    output = gemma(input_ids=tokens_BL, attention_mask=mask_BL, output_hidden_states=True, use_cache=False)
    layers = torch.stack(output.hidden_states, dim=-1)
    video, sound, _ = connectors(layers.flatten(2, 3), mask_BL, padding_side="left")
    return torch.cat([video, sound], dim=-1)
