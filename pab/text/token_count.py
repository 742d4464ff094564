"""Counting a prompt's tokens with the tokenizer that lies beside a family's weights. No torch here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

Count = Callable[[Sequence[str]], list[int]]


def token_counter(weights: str | None) -> Count | None:
    """Returns what counts the tokens of texts, the end included; None where no tokenizer that it reads lies in a folder."""
    if weights is None:
        return None
    for folder in (Path(weights).expanduser() / "tokenizer", Path(weights).expanduser() / "text_encoder"):
        if (folder / "tokenizer.json").is_file():
            return _of_json(folder / "tokenizer.json")
        if (folder / "spiece.model").is_file():
            return _of_sentencepiece(folder / "spiece.model")
    return None


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
