"""The T5 text encoder of published models: loaded when prompts are to be encoded, let go before the denoising.

Every batch has the same number of rows, each padded to the same length, so a prompt's numbers do not depend on the prompts
it is encoded with. Shape letters: B prompts, L tokens, C channels.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pab.checkpoint import CheckpointError, load_module, read_tensors
from pab.dealing import deal
from pab.models.video import TextStates
from pab.parallel import Axis

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
    max_length: int = 300
    rows_per_batch: int = 4
    axis: Axis = field(default_factory=Axis)
    architecture: str = "T5"
    reads_padding: bool = False

    def __call__(self, texts: Sequence[str]) -> TextStates:
        """Returns the states of all texts on the CPU, [B, max_length, C]. Collective over `axis`."""
        tokenizer = load_tokenizer(self.tokenizer_folder)
        tokens, mask = self._tokens(tokenizer, texts)
        rows = math.ceil(len(texts) / self.rows_per_batch) * self.rows_per_batch
        states = self._encode(_fill(tokens, rows), _fill(mask, rows))
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return TextStates(
            y_BLC=states[: len(texts)],
            mask_BL=mask,
            warnings=tuple(self._warnings(tokenizer, text) for text in texts),
        )

    def _tokens(self, tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = tokenizer(
            list(texts),
            max_length=self.max_length,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return encoded.input_ids, encoded.attention_mask

    def _encode(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        batches = list(zip(tokens_BL.split(self.rows_per_batch), mask_BL.split(self.rows_per_batch), strict=True))
        channels = int(self._config().d_model)
        encoder = self._load() if self.axis.rank < len(batches) else None

        @torch.inference_mode()
        def compute(index: int) -> Tensor:
            assert encoder is not None, "this rank has a batch"
            tokens, mask = (part.to(self.device) for part in batches[index])
            seen = torch.ones_like(mask) if self.reads_padding else mask
            return encoder(input_ids=tokens, attention_mask=seen).last_hidden_state

        shapes = [(self.rows_per_batch, self.max_length, channels)] * len(batches)
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return torch.cat([piece.cpu() for piece in deal(compute, shapes, like=like, axis=self.axis)])

    def _load(self) -> nn.Module:
        encoder_class, config = getattr(_transformers(), f"{self.architecture}EncoderModel"), self._config()
        tensors = read_tensors(self.folder)
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
        path = self.folder / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; it must lie beside the weights of the text encoder")
        return getattr(_transformers(), f"{self.architecture}Config").from_json_file(path)

    def _warnings(self, tokenizer: Any, text: str) -> tuple[str, ...]:
        length = len(tokenizer(text, verbose=False).input_ids)
        if length <= self.max_length:
            return ()
        return (f"the prompt has {length} tokens, the text encoder reads the first {self.max_length}",)


def _fill(rows: Tensor, count: int) -> Tensor:
    """Repeats the last row until there are `count`."""
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])


def load_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer in a folder. Raises CheckpointError naming the folder."""
    try:
        return _transformers().AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except ImportError as error:
        raise CheckpointError(f"{folder}: {error}; install the extra 'models'") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer ({error}); needs spiece.model, or tokenizer.json with tokenizer_config.json"
        ) from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError("the T5 text encoder needs transformers; install the extra 'models'") from error
    return transformers
