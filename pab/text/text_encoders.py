"""What text encoders of published models share: tokenizers, and batches that do not depend on each other.

Every batch has the same number of rows, each padded to the same length, so a prompt's numbers do not depend on the prompts
it is encoded with. Shape letters: B prompts, L tokens.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pab.parallel.mesh import Axis
from pab.parallel.round_robin import round_robin
from pab.weights.checkpoint import CheckpointError


def transformers_library() -> Any:
    """Returns the library. Raises CheckpointError where it is absent."""
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError("text encoders need transformers; install the extra 'models'") from error
    return transformers


def read_encoder_config(folder: Path, config_class: str) -> Any:
    """Reads an encoder's configuration as the library's class has it. Raises CheckpointError naming the file."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; it must lie beside the weights of the text encoder")
    return getattr(transformers_library(), config_class).from_json_file(path)


def load_tokenizer(folder: Path, tokenizer_class: str = "AutoTokenizer", files: str | None = None) -> Any:
    """Returns the tokenizer in a folder, `files` naming in errors what it needs. Raises CheckpointError."""
    needed = files or "spiece.model, or tokenizer.json with tokenizer_config.json"
    try:
        return getattr(transformers_library(), tokenizer_class).from_pretrained(str(folder), local_files_only=True)
    except ImportError as error:
        raise CheckpointError(f"{folder}: {error}; install the extra 'models'") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no tokenizer ({error}); needs {needed}") from error


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
    """Returns tokens and mask [B, max_length] of texts, cut or padded to that length."""
    encoded = tokenizer(
        list(texts),
        max_length=max_length,
        padding="max_length",
        truncation=True,
        return_attention_mask=True,
        add_special_tokens=True,
        return_tensors="pt",
    )
    return encoded.input_ids, encoded.attention_mask


def length_warnings(tokenizer: Any, text: str, max_length: int, before: int = 0) -> tuple[str, ...]:
    """Returns what to tell about a text that is longer than the encoder reads. `before`: tokens that are not the prompt's."""
    length = len(tokenizer(text, verbose=False).input_ids) - before
    if length <= max_length:
        return ()
    return (f"the prompt has {length} tokens, the text encoder reads the first {max_length}",)


def encode_batches(
    tokens_BL: Tensor,
    mask_BL: Tensor,
    *,
    load: Callable[[], Any],
    encode: Callable[[Any, Tensor, Tensor], Tensor],
    row_shape: Sequence[int],
    like: Tensor,
    rows_per_batch: int,
    axis: Axis,
) -> Tensor:
    """Returns [B, *row_shape] on the CPU, in the type of `like`, whose device the encoder is on. Collective over `axis`.

    The ranks share the batches. One that has none does not `load` the encoder, which is let go before this returns.
    """
    rows = math.ceil(len(tokens_BL) / rows_per_batch) * rows_per_batch
    tokens, masks = (_fill(part, rows).split(rows_per_batch) for part in (tokens_BL, mask_BL))

    def pieces() -> list[Tensor]:
        encoder = load() if axis.rank < len(tokens) else None

        @torch.inference_mode()
        def compute(batch: int) -> Tensor:
            assert encoder is not None, "this rank has a batch"
            return encode(encoder, tokens[batch].to(like.device), masks[batch].to(like.device))

        shapes = [(rows_per_batch, *row_shape)] * len(tokens)
        return [piece.cpu() for piece in round_robin(compute, shapes, like=like, axis=axis)]

    states = torch.cat(pieces())[: len(tokens_BL)]
    gc.collect()
    if like.device.type == "cuda":
        torch.cuda.empty_cache()
    return states


def _fill(rows: Tensor, count: int) -> Tensor:
    """Repeats the last row until there are `count`."""
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])
