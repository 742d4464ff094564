"""The text encoders of HunyuanVideo's image to video: a LLaVA that reads the prompt after the clip's image, and CLIP.

The states of the image's tokens, some of them, stand before those of the prompt. LLaVA reads both in one sequence, so that a
prompt's states depend on the image: they are made for each clip, when its image is known. Shape letters: B prompts, L tokens,
C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pab.conditioning.reference_pixels import ReferenceImage
from pab.families.hunyuan_video.config import MAX_TEXT_TOKENS, ImageWay
from pab.families.hunyuan_video.text import READ_STATES, clip_vectors
from pab.family import ClipRequest, LoadRequest
from pab.library.image import clip_processor
from pab.parallel.mesh import Axis
from pab.text.states import TextStates
from pab.text.text_encoders import (
    compute_positions,
    encode_batches,
    length_warnings,
    load_json_tokenizer,
    read_encoder_config,
    tokenize,
    transformers_library,
)
from pab.weights.checkpoint import CheckpointError, dtype_of, load_module, read_tensors

INSTRUCTION = (
    "<|start_header_id|>system<|end_header_id|>\n\n<image>\nDescribe the video by detailing the following aspects "
    "according to the reference image: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>\n\n"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
"""What the model was trained with, to the letter."""
INSTRUCTION_TOKENS = 103
"""Tokens before the prompt, the image's placeholder being one of them; their states are left out."""
IMAGE_AT, IMAGE_TOKENS = 5, 576
"""Where the placeholder is, and how many tokens stand in its place."""
ANSWER_TOKENS = 4
"""The tokens up to the last header's end, whose states are left out too: what ends the prompt and begins an answer."""
HEADER_END = "<|end_header_id|>"
_READ = MAX_TEXT_TOKENS - ANSWER_TOKENS - 1
_CONFIG = "LlavaConfig"


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanImageText:
    """Encodes prompts with both encoders, one after the other. The ranks of `axis` share the prompts.

    `root`: the folder that holds `text_encoder/`, `tokenizer/`, `image_processor/`, `text_encoder_2/` and `tokenizer_2/`.
    """

    root: Path
    way: ImageWay
    dtype: torch.dtype
    device: torch.device
    axis: Axis

    def __call__(self, texts: Sequence[str]) -> TextStates:
        """Returns what there is to warn about, and no states: these come with the image."""
        tokenizer = self._tokenizer()
        asked = [INSTRUCTION.format(text) for text in texts]
        others = INSTRUCTION_TOKENS + ANSWER_TOKENS + 1
        return TextStates(
            y_BLC=torch.zeros(len(texts), 0, 1),
            mask_BL=torch.zeros(len(texts), 0, dtype=torch.long),
            warnings=tuple(length_warnings(tokenizer, text, _READ, others) for text in asked),
        )

    def with_image(
        self, clip: ClipRequest, image: ReferenceImage, *, guided: bool
    ) -> tuple[TextStates, TextStates | None]:
        """Returns states of the clip's prompt with its image, and, if it is `guided`, of its negative prompt with black.

        Collective over `axis`. Raises ValueError for a prompt that has the image's placeholder in it.
        """
        black = ReferenceImage(frame_HW3=torch.zeros(clip.height, clip.width, 3, dtype=torch.uint8))
        texts, images = [clip.prompt], [image]
        if guided:
            texts, images = [clip.prompt, clip.negative_prompt or ""], [image, black]
        states, mask = self._llava(texts, images)
        both = TextStates(
            y_BLC=states,
            mask_BL=mask,
            warnings=((),) * len(texts),
            pooled_BD=clip_vectors(self.root, texts, dtype=self.dtype, device=self.device, axis=self.axis),
        )
        return both.row(0), both.row(1) if guided else None

    def _tokenizer(self) -> Any:
        return load_json_tokenizer(self.root / "tokenizer")

    def _pixels(self, images: Sequence[ReferenceImage]) -> Tensor:
        prepare = clip_processor(self.root)
        return torch.cat([prepare(image) for image in images])

    def _llava(self, texts: Sequence[str], images: Sequence[ReferenceImage]) -> tuple[Tensor, Tensor]:
        """Returns states [B, L, C] and mask [B, L]: of the image's tokens that are kept, then of the prompt's."""
        tokenizer, folder = self._tokenizer(), self.root / "text_encoder"
        config = read_encoder_config(folder, _CONFIG)
        length = INSTRUCTION_TOKENS + MAX_TEXT_TOKENS
        tokens, mask = tokenize(tokenizer, [INSTRUCTION.format(text) for text in texts], length)
        places = [_answer_places(row, tokenizer.convert_tokens_to_ids(HEADER_END)) for row in tokens]
        for row, text in zip(tokens, texts, strict=True):
            _check_placeholder(row, config.image_token_id, text, self.root / "tokenizer")
        kept = torch.stack([_kept_places(place, self.way.every) for place in places])
        states = encode_batches(
            (torch.stack([_with_image_tokens(row) for row in tokens]), kept, self._pixels(images)),
            load=lambda: _load_llava(folder, self.dtype, self.device),
            encode=_llava_states,
            row_shape=(kept.shape[1], int(config.text_config.hidden_size)),
            like=torch.empty(0, dtype=self.dtype, device=self.device),
            rows_per_batch=1,
            axis=self.axis,
        )
        image_mask = mask.new_ones(len(tokens), IMAGE_TOKENS // self.way.every)
        of_prompt = [
            torch.cat([row[INSTRUCTION_TOKENS : at.start], row[at.stop :]])
            for row, at in zip(mask, places, strict=True)
        ]
        return states, torch.cat([image_mask, torch.stack(of_prompt)], dim=1)


def open_hunyuan_image_text(way: ImageWay, root: Path, request: LoadRequest) -> HunyuanImageText:
    """Returns the encoders of a model that is loaded as `request` says; weights are read when texts are encoded."""
    dtype, device = dtype_of(request.precision), torch.device(request.device)
    return HunyuanImageText(root=root, way=way, dtype=dtype, device=device, axis=request.clip_axis or Axis())


def _check_placeholder(tokens_L: Tensor, image_token: int, text: str, folder: Path) -> None:
    found = (tokens_L == image_token).nonzero().flatten().tolist()
    if found[:1] != [IMAGE_AT]:
        raise CheckpointError(
            f"{folder}: the image's placeholder is at {found}, needs {IMAGE_AT}; use the published files"
        )
    if len(found) > 1:
        raise ValueError(f"the prompt {text[:40]!r} has <image> in it, which stands for the clip's image; leave it out")


def _answer_places(tokens_L: Tensor, header_end: int) -> range:
    """Returns the places of the tokens that end the prompt and begin an answer. A prompt that was cut has no such end."""
    ends = (tokens_L == header_end).nonzero().flatten().tolist()
    last = len(tokens_L) - 1 if len(ends) == 2 else ends[-1]
    return range(last + 1 - ANSWER_TOKENS, last + 1)


def _with_image_tokens(tokens_L: Tensor) -> Tensor:
    """Returns tokens [L + 575], the image's in the place of their placeholder."""
    return torch.cat([tokens_L[:IMAGE_AT], tokens_L[IMAGE_AT].expand(IMAGE_TOKENS), tokens_L[IMAGE_AT + 1 :]])


def _kept_places(answer: range, every: int) -> Tensor:
    """Returns which places of the sequence with the image are kept: of the image one of `every`, and the prompt's."""
    image = range(IMAGE_AT, IMAGE_AT + IMAGE_TOKENS, every)
    prompt = [at for at in range(INSTRUCTION_TOKENS, INSTRUCTION_TOKENS + MAX_TEXT_TOKENS) if at not in answer]
    return torch.tensor([*image, *(at + IMAGE_TOKENS - 1 for at in prompt)])


def _llava_states(encoder: Any, tokens_BL: Tensor, kept_BK: Tensor, pixels: Tensor) -> Tensor:
    mask = (tokens_BL != encoder.config.pad_token_id).long()
    output = encoder(
        input_ids=tokens_BL,
        pixel_values=pixels,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).masked_fill(mask == 0, 1),
        output_hidden_states=True,
        use_cache=False,
    )
    states: Tensor = output.hidden_states[READ_STATES]
    return states.gather(1, kept_BK[..., None].expand(-1, -1, states.shape[-1]))


def _load_llava(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    config = read_encoder_config(folder, _CONFIG)

    def build() -> nn.Module:
        module = transformers_library().LlavaModel(config)
        compute_positions(module)
        with torch.device("cpu"):
            rotary = module.language_model.rotary_emb
            module.language_model.rotary_emb = type(rotary)(config=config.text_config)  # computed, in no file
        return module

    with torch.device("meta"):
        expected = build().state_dict()
    tensors = _as_named(read_tensors(folder), expected)
    module = load_module(
        build,
        tensors,
        what=f"LLaVA in {folder}",
        dtype=dtype,
        device=device,
        surplus_ok=("lm_head.weight", "*position_ids"),
    )
    return module.to(device)


_VISION = "vision_tower.vision_model."


def _as_named(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors under the names of the installed library. In files, older names stand as well as newer ones."""
    vision = _VISION if any(key.startswith(_VISION) for key in expected) else "vision_tower."

    def named(key: str) -> str:
        key = key.removeprefix("model.")
        for old, new in (("language_model.lm_head.", "lm_head."), ("language_model.model.", "language_model.")):
            key = key.replace(old, new, 1) if key.startswith(old) else key
        if key.startswith("vision_tower."):
            key = vision + key.removeprefix("vision_tower.").removeprefix("vision_model.")
        return key

    return {named(key): value for key, value in tensors.items()}
