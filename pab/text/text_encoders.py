"""What text encoders of published models share: tokenizers, and batches that do not depend on each other.

Every batch has the same number of rows, each padded to the same length, so a prompt's numbers do not depend on the prompts
it is encoded with; an encoder whose kernel is chosen by what is masked in the whole batch takes one row at a time. Shape
letters: B prompts, L tokens.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pab.parallel.mesh import Axis
from pab.parallel.round_robin import round_robin
from pab.weights.checkpoint import CheckpointError


def transformers_library() -> Any:
    """Returns the library. Raises CheckpointError where it is absent."""
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError("text encoders need transformers; pip install 'pab-pipeline[models]'") from error
    return transformers


def read_encoder_config(folder: Path, config_class: str) -> Any:
    """Reads an encoder's configuration as the library's class has it. Raises CheckpointError naming the file."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; it must lie beside the weights of the text encoder")
    return getattr(transformers_library(), config_class).from_json_file(path)


_TOKENIZER_JSON = "tokenizer.json with tokenizer_config.json"


def load_json_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of a folder's tokenizer.json. Raises CheckpointError.

    The tokens are those of the file, whichever class it names: the library rebuilds some classes by other rules.
    """
    return load_tokenizer(folder, "PreTrainedTokenizerFast", needed=_TOKENIZER_JSON)


def load_tokenizer(
    folder: Path, tokenizer_class: str = "AutoTokenizer", *, needed: str = f"spiece.model, or {_TOKENIZER_JSON}"
) -> Any:
    """Returns the tokenizer in a folder, `needed` naming in errors the files that it needs. Raises CheckpointError."""
    try:
        return getattr(transformers_library(), tokenizer_class).from_pretrained(str(folder), local_files_only=True)
    except ImportError as error:
        raise CheckpointError(f"{folder}: {error}; pip install 'pab-pipeline[models]'") from error
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


def compute_positions(module: nn.Module) -> None:
    """Makes real the position numbers of a CLIP, which it computes itself and no file holds."""
    for part in module.modules():
        if "position_ids" in dict(part.named_buffers(recurse=False)):
            count = part.get_buffer("position_ids").shape[-1]
            part.register_buffer("position_ids", torch.arange(count, device="cpu")[None], persistent=False)


def length_warnings(tokenizer: Any, text: str, max_length: int, before: int = 0) -> tuple[str, ...]:
    """Returns what to tell about a text that is longer than the encoder reads. `before`: tokens that are not the prompt's."""
    length = len(tokenizer(text, verbose=False).input_ids) - before
    if length <= max_length:
        return ()
    return (f"the prompt has {length} tokens, the text encoder reads the first {max_length}",)


def encode_batches(
    parts: Sequence[Tensor],
    *,
    load: Callable[[], Any],
    encode: Callable[..., Tensor],
    row_shape: Sequence[int],
    like: Tensor,
    rows_per_batch: int,
    axis: Axis,
) -> Tensor:
    """Returns [B, *row_shape] on the CPU, in the type of `like`, whose device the encoder is on. Collective over `axis`.

    `parts`: what an encoder reads of B prompts, such as tokens and mask [B, L]; `encode` is given the encoder and a batch's
    rows of each. The ranks share the batches. One that has none does not `load` the encoder, which is let go before this
    returns. It may be a tuple of several.
    """
    count = math.ceil(len(parts[0]) / rows_per_batch)
    batches = [_fill(part, count * rows_per_batch).split(rows_per_batch) for part in parts]
    loaded: list[weakref.ref[Any]] = []

    def pieces() -> list[Tensor]:
        encoder = load() if axis.rank < count else None
        loaded.extend(
            weakref.ref(each) for each in (encoder if isinstance(encoder, tuple) else (encoder,)) if each is not None
        )

        @torch.inference_mode()
        def compute(batch: int) -> Tensor:
            assert encoder is not None, "this rank has a batch"
            return encode(encoder, *(of_part[batch].to(like.device) for of_part in batches))

        shapes = [(rows_per_batch, *row_shape)] * count
        return [piece.cpu() for piece in round_robin(compute, shapes, like=like, axis=axis)]

    states = torch.cat(pieces())[: len(parts[0])]
    if any(each() is not None for each in loaded):
        gc.collect()  # it is a part of a circle; looking through all objects takes a second in a process that has many
    if like.device.type == "cuda":
        torch.cuda.empty_cache()
    return states


def _fill(rows: Tensor, count: int) -> Tensor:
    """Repeats the last row until there are `count`."""
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])
