"""HunyuanVideo 1.5's two text encoders: a Qwen2.5-VL that reads the prompt in a chat, and a ByT5 for text to be shown.

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

from pab.families.hunyuan_video_15.config import Hunyuan15Model
from pab.family import LoadRequest
from pab.parallel.mesh import Axis
from pab.text.states import TextStates, joined
from pab.text.t5_text import T5Text
from pab.text.text_encoders import (
    encode_batches,
    length_warnings,
    load_json_tokenizer,
    read_encoder_config,
    transformers_library,
)
from pab.weights.checkpoint import CheckpointError, dtype_of, load_module, read_tensors

_GAP = " " * 8
INSTRUCTION = (
    "You are a helpful assistant. Describe the video by detailing the following aspects: "
    f"{_GAP}1. The main content and theme of the video. "
    f"{_GAP}2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects. "
    f"{_GAP}3. Actions, events, behaviors temporal relationships, physical movement changes of the objects. "
    f"{_GAP}4. background environment, light, style and atmosphere. "
    f"{_GAP}5. camera angles, movements, and transitions used in the video."
)
"""What the model was trained with, to the letter."""
INSTRUCTION_TOKENS = 108
"""Tokens before the prompt; their states are left out."""
READ_STATES = -3
"""Of Qwen's states the ones that come before its last two layers."""
_QUOTED = re.compile(r"\"(.*?)\"|“(.*?)”")
_CONFIG = "Qwen2_5_VLTextConfig"


def shown_text(prompt: str) -> str | None:
    """Returns what the second encoder reads: the texts that a prompt has in double quotes. None: it has none."""
    quoted = list(dict.fromkeys(straight or curly for straight, curly in _QUOTED.findall(prompt)))
    return ". ".join(f'Text "{text}"' for text in quoted) + ". " if quoted else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunyuan15Text:
    """Encodes prompts with both encoders, one after the other. The ranks of `axis` share the batches of each.

    `root`: the folder that holds `text_encoder/`, `tokenizer/`, `text_encoder_2/` and `tokenizer_2/`.
    """

    root: Path
    model: Hunyuan15Model
    dtype: torch.dtype
    device: torch.device
    axis: Axis

    def __call__(self, texts: Sequence[str]) -> TextStates:
        """Returns states [B, L, C] of all texts on the CPU, and those of the shown ones. Collective over `axis`."""
        tokenizer = load_json_tokenizer(self.root / "tokenizer")
        if not tokenizer.chat_template:
            raise CheckpointError(f"{self.root / 'tokenizer'} has no chat template, which prompts are put into")
        chats = [
            [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text or " "}] for text in texts
        ]
        encoded = tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            padding="max_length",
            max_length=self.model.max_text_tokens + INSTRUCTION_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        width = int(read_encoder_config(self.root / "text_encoder", _CONFIG).hidden_size)
        states = encode_batches(
            (encoded.input_ids, encoded.attention_mask),
            load=self._load_qwen,
            encode=_qwen_states,
            row_shape=(self.model.max_text_tokens, width),
            like=torch.empty(0, dtype=self.dtype, device=self.device),
            # Beside a shorter prompt one that fills all tokens would go through another kernel of the library's.
            rows_per_batch=1,
            axis=self.axis,
        )
        asked = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        return TextStates(
            y_BLC=states,
            mask_BL=encoded.attention_mask[:, INSTRUCTION_TOKENS:],
            warnings=tuple(
                length_warnings(tokenizer, text, self.model.max_text_tokens, INSTRUCTION_TOKENS) for text in asked
            ),
            second=self._glyphs(texts),
        )

    def _glyphs(self, texts: Sequence[str]) -> TextStates:
        """Returns the second encoder's states; zeros that do not count for a text that shows none."""
        folder = self.root / "text_encoder_2"
        width = int(read_encoder_config(folder, "T5Config").d_model)
        shown = [shown_text(text) for text in texts]
        read = list(dict.fromkeys(text for text in shown if text is not None))
        rows: dict[str | None, TextStates] = {
            None: TextStates(
                y_BLC=torch.zeros(1, self.model.max_glyph_tokens, width, dtype=self.dtype),
                mask_BL=torch.zeros(1, self.model.max_glyph_tokens, dtype=torch.long),
                warnings=((),),
            )
        }
        if read:
            encode = T5Text(
                folder=folder,
                tokenizer_folder=self.root / "tokenizer_2",
                dtype=self.dtype,
                device=self.device,
                max_length=self.model.max_glyph_tokens,
                axis=self.axis,
            )
            states = encode(read)
            rows |= {text: states.row(i) for i, text in enumerate(read)}
        return joined([rows[text] for text in shown])

    def _load_qwen(self) -> nn.Module:
        folder = self.root / "text_encoder"
        config = read_encoder_config(folder, _CONFIG)

        def build() -> nn.Module:
            module = transformers_library().Qwen2_5_VLTextModel(config)
            with torch.device("cpu"):
                module.rotary_emb = type(module.rotary_emb)(config=config)  # computed, in no file
            return module

        module = load_module(
            build, read_tensors(folder), what=f"Qwen2.5-VL in {folder}", dtype=self.dtype, device=self.device
        )
        return module.to(self.device)


def open_hunyuan_15_text(model: Hunyuan15Model, root: Path, request: LoadRequest) -> Hunyuan15Text:
    """Returns the encoders of a model that is loaded as `request` says; weights are read when texts are encoded."""
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    return Hunyuan15Text(root=root, model=model, dtype=dtype, device=device, axis=request.clip_axis or Axis())


def _qwen_states(encoder: Any, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
    output = encoder(input_ids=tokens_BL, attention_mask=mask_BL, output_hidden_states=True, use_cache=False)
    return output.hidden_states[READ_STATES][:, INSTRUCTION_TOKENS:]
