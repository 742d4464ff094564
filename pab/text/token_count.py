"""Counting a prompt's tokens with the tokenizer that lies beside a family's weights. No torch here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

Count = Callable[[Sequence[str]], list[int]]
SPIECE_LIBRARIES = ("sentencepiece", "google.protobuf")
"""What transformers imports to read a spiece.model; a tokenizer.json needs neither."""


def token_counter(weights: str | None) -> Count | None:
    """Returns what counts the tokens of texts, the end included; None where no tokenizer that it reads lies in a folder."""
    file = tokenizer_file(weights)
    if file is None:
        return None
    return _of_json(file) if file.suffix == ".json" else _of_sentencepiece(file)


def tokenizer_file(weights: str | None) -> Path | None:
    """Returns the tokenizer.json or else the spiece.model that lies in a folder of weights; None where neither does."""
    if weights is None:
        return None
    folders = (Path(weights).expanduser() / name for name in ("tokenizer", "text_encoder"))
    files = (folder / name for folder in folders for name in ("tokenizer.json", "spiece.model"))
    return next((file for file in files if file.is_file()), None)


def _of_json(file: Path) -> Count | None:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    try:
        json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # loading the weights says what is wrong with it
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(encoded.ids) for encoded in tokenizer.encode_batch(list(texts))]


def _of_sentencepiece(file: Path) -> Count | None:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        return None
    try:
        processor = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError):
        return None
    return lambda texts: [len(ids) + 1 for ids in processor.encode(list(texts))]
