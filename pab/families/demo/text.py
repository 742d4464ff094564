"""Reads demo prompts: a closed vocabulary of words and a small transformer encoder over their ids.

Shape letters: B prompts, L words, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pab.families.demo.words import MAX_WORDS, SPECIAL, split_words

PAD, UNKNOWN, START = 0, 1, 2
ROWS_PER_BATCH = 16
"""Prompts that are encoded at once, filled up to so many: a prompt's numbers do not depend on how many a job has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The size of the text encoder."""

    max_words: int = 1 + MAX_WORDS
    """Length of every encoded prompt, the start token included."""
    channels: int = 128
    num_layers: int = 2
    num_heads: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedText:
    """Prompts as the transformer reads them: y [B, 1, L, C], mask [B, L] of ones.

    `warnings`: per prompt, words that it does not know, and how many there are where some are cut.
    Every position is valid: the encoder gives padding positions a meaning of their own, so no length varies.
    """

    y: Tensor
    mask: Tensor
    warnings: tuple[tuple[str, ...], ...]


class Tokenizer:
    """Maps words to ids over a closed vocabulary."""

    def __init__(self, vocabulary: Sequence[str], max_words: int) -> None:
        """Takes the vocabulary with its special tokens first. Raises ValueError if they are missing."""
        if tuple(vocabulary[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"the vocabulary starts with {list(vocabulary[:3])}; it has to start with {SPECIAL}")
        self.vocabulary = tuple(vocabulary)
        self.max_words = max_words
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}

    def ids(self, prompt: str) -> tuple[list[int], tuple[str, ...]]:
        """Returns the ids of one prompt, cut or padded, and what to tell about it.

        Unknown words hold a place only while there is room. If the known ones alone are too many, the first are read.
        """
        words, most = split_words(prompt), self.max_words - 1
        unknown = dict.fromkeys(word for word in words if word not in self._ids)
        warnings = [f"the demo model does not know {word!r}" for word in unknown]
        if len(words) > most:
            words = [word for word in words if word in self._ids]
        if len(words) > most:
            warnings.append(
                f"the prompt has {len(words)} words that the demo model knows, the text encoder reads the first {most}"
            )
        ids = [START, *(self._ids.get(word, UNKNOWN) for word in words[:most])]
        return ids + [PAD] * (self.max_words - len(ids)), tuple(warnings)

    def batch(self, prompts: Sequence[str]) -> Tensor:
        """Returns the ids [B, L] of several prompts, on the CPU."""
        return torch.tensor([self.ids(prompt)[0] for prompt in prompts], dtype=torch.int64).view(-1, self.max_words)


class TextEncoder(nn.Module):
    """Embeds words and mixes them in a few pre-norm transformer layers."""

    def __init__(self, config: TextConfig, vocabulary: Sequence[str]) -> None:
        """Makes an untrained encoder over the vocabulary."""
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(vocabulary, config.max_words)
        self.words = nn.Embedding(len(self.tokenizer.vocabulary), config.channels)
        self.positions = nn.Parameter(torch.randn(config.max_words, config.channels) * 0.02)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.channels)
        nn.init.normal_(self.words.weight, std=0.5)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Encodes word ids. Returns [B, 1, L, C]."""
        x_BLC = self.words(ids_BL) + self.positions
        is_word = (ids_BL != PAD)[:, None, None, :]
        for layer in self.layers:
            x_BLC = layer(x_BLC, is_word)
        normed: Tensor = self.norm(x_BLC)
        return normed[:, None]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Encodes prompts on the encoder's device."""
        rows = [self.tokenizer.ids(prompt) for prompt in prompts]
        device = self.positions.device
        ids_BL = torch.tensor([row[0] for row in rows], dtype=torch.int64, device=device).view(
            -1, self.config.max_words
        )
        missing = -len(rows) % ROWS_PER_BATCH
        filled = torch.cat([ids_BL, ids_BL[-1:].expand(missing, -1)])
        y = torch.cat([self(batch) for batch in filled.split(ROWS_PER_BATCH)])[: len(rows)]
        return EncodedText(y=y, mask=torch.ones_like(ids_BL), warnings=tuple(row[1] for row in rows))


class _Layer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(config.channels)
        self.qkv = nn.Linear(config.channels, 3 * config.channels)
        self.proj = nn.Linear(config.channels, config.channels)
        self.mlp_norm = nn.LayerNorm(config.channels)
        self.fc1 = nn.Linear(config.channels, 4 * config.channels)
        self.fc2 = nn.Linear(4 * config.channels, config.channels)

    def forward(self, x_BLC: Tensor, is_word: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x_BLC)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=is_word)
        x_BLC = x_BLC + self.proj(mixed.transpose(1, 2).flatten(-2))
        added: Tensor = self.fc2(F.gelu(self.fc1(self.mlp_norm(x_BLC)), approximate="tanh"))
        return x_BLC + added
