"""HunyuanVideo's two text encoders: a LLaMA that reads the prompt within an instruction, and CLIP's one vector of it.

Shape letters: B prompts, L tokens, C channels, D channels of the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pab.families.hunyuan_video.config import MAX_TEXT_TOKENS
from pab.family import LoadRequest
from pab.parallel.mesh import Axis
from pab.text.states import TextStates
from pab.text.text_encoders import (
    compute_positions,
    encode_batches,
    length_warnings,
    load_json_tokenizer,
    load_tokenizer,
    read_encoder_config,
    tokenize,
    transformers_library,
)
from pab.weights.checkpoint import dtype_of, load_module, read_tensors

INSTRUCTION = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
"""What the model was trained with, to the letter."""
INSTRUCTION_TOKENS = 95
"""Tokens before the prompt; their states are left out."""
MAX_CLIP_TOKENS = 77
LLAMA_ROWS, CLIP_ROWS = 1, 4
"""Of a batch. The library leaves a mask out that hides nothing, and then attends by another kernel: beside a shorter prompt
one that fills all tokens would round otherwise."""
READ_STATES = -3
"""Of LLaMA's states the ones that come before its last two layers."""
_CLIP_PREFIX = "text_model."


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanText:
    """Encodes prompts with both encoders, one after the other. The ranks of `axis` share the batches of each.

    `root`: the folder that holds `text_encoder/`, `tokenizer/`, `text_encoder_2/` and `tokenizer_2/`.
    """

    root: Path
    dtype: torch.dtype
    device: torch.device
    axis: Axis

    def __call__(self, texts: Sequence[str]) -> TextStates:
        """Returns states [B, 256, C] and vectors [B, D] of all texts on the CPU. Collective over `axis`."""
        tokenizer = load_json_tokenizer(self.root / "tokenizer")
        asked = [INSTRUCTION.format(text) for text in texts]
        tokens, mask = tokenize(tokenizer, asked, INSTRUCTION_TOKENS + MAX_TEXT_TOKENS)
        states = encode_batches(
            (tokens, mask),
            load=lambda: _load_llama(self.root, self.dtype, self.device),
            encode=_llama_states,
            row_shape=(MAX_TEXT_TOKENS, int(read_encoder_config(self.root / "text_encoder", _LLAMA).hidden_size)),
            like=torch.empty(0, dtype=self.dtype, device=self.device),
            rows_per_batch=LLAMA_ROWS,
            axis=self.axis,
        )
        return TextStates(
            y_BLC=states,
            mask_BL=mask[:, INSTRUCTION_TOKENS:],
            warnings=tuple(length_warnings(tokenizer, text, MAX_TEXT_TOKENS, INSTRUCTION_TOKENS) for text in asked),
            pooled_BD=clip_vectors(self.root, texts, dtype=self.dtype, device=self.device, axis=self.axis),
        )


def open_hunyuan_text(root: Path, request: LoadRequest) -> HunyuanText:
    """Returns the encoders of a model that is loaded as `request` says; weights are read when texts are encoded."""
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    return HunyuanText(root=root, dtype=dtype, device=device, axis=request.clip_axis or Axis())


def clip_vectors(root: Path, texts: Sequence[str], *, dtype: torch.dtype, device: torch.device, axis: Axis) -> Tensor:
    """Returns CLIP's vectors [B, D] of all texts on the CPU. Collective over `axis`."""
    tokenizer = load_tokenizer(root / "tokenizer_2", needed="vocab.json with merges.txt")
    tokens, mask = tokenize(tokenizer, texts, MAX_CLIP_TOKENS)
    return encode_batches(
        (tokens, mask),
        load=lambda: _load_clip(root, dtype, device),
        encode=_clip_vector,
        row_shape=(int(read_encoder_config(root / "text_encoder_2", _CLIP).hidden_size),),
        like=torch.empty(0, dtype=dtype, device=device),
        rows_per_batch=CLIP_ROWS,
        axis=axis,
    )


_LLAMA, _CLIP = "LlamaConfig", "CLIPTextConfig"


def _llama_states(encoder: Any, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
    output = encoder(input_ids=tokens_BL, attention_mask=mask_BL, output_hidden_states=True, use_cache=False)
    return output.hidden_states[READ_STATES][:, INSTRUCTION_TOKENS:]


def _clip_vector(encoder: Any, tokens_BL: Tensor, _mask_BL: Tensor) -> Tensor:
    return encoder(tokens_BL).pooler_output


def _load_llama(root: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    folder = root / "text_encoder"
    config = read_encoder_config(folder, _LLAMA)

    def build() -> nn.Module:
        module = transformers_library().LlamaModel(config)
        with torch.device("cpu"):
            module.rotary_emb = type(module.rotary_emb)(config=config)  # computed, in no file
        return module

    module = load_module(build, read_tensors(folder), what=f"LLaMA in {folder}", dtype=dtype, device=device)
    return module.to(device)


def _load_clip(root: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    folder = root / "text_encoder_2"
    config = read_encoder_config(folder, _CLIP)

    def build() -> nn.Module:
        module: nn.Module = transformers_library().CLIPTextModel(config)
        compute_positions(module)
        return module

    # Files have the prefix; the library's newer releases do without it.
    with torch.device("meta"):
        prefix = _CLIP_PREFIX if any(key.startswith(_CLIP_PREFIX) for key in build().state_dict()) else ""
    tensors = {prefix + key.removeprefix(_CLIP_PREFIX): value for key, value in read_tensors(folder).items()}
    module = load_module(
        build, tensors, what=f"CLIP in {folder}", dtype=dtype, device=device, surplus_ok=("*position_ids",)
    )
    return module.to(device)
