"""The demo model's weights: one float16 safetensors file whose metadata holds configuration and vocabulary."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pab.families.demo.autoencoder import Autoencoder, AutoencoderConfig
from pab.families.demo.config import WEIGHTS
from pab.families.demo.frame_position import FRAME_CHANNELS
from pab.families.demo.text import TextConfig, TextEncoder
from pab.families.demo.words import build_vocabulary
from pab.families.open_sora.stdit3 import STDiT3
from pab.families.open_sora.stdit3_blocks import STDiT3Config

_PARTS = ("transformer", "autoencoder", "text_encoder")
_FORMAT = "pab-demo-3"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """The sizes of the three parts."""

    transformer: STDiT3Config
    autoencoder: AutoencoderConfig
    text: TextConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoParts:
    """The three parts of the demo model, ready to use."""

    transformer: STDiT3
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    vocabulary: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Returns where the parts are."""
        return self.text_encoder.positions.device


def demo_config(*, small: bool = False) -> DemoConfig:
    """Returns the sizes of the shipped model, or with `small` of one that trains on a CPU within a minute."""
    text = TextConfig(channels=32, num_heads=2, num_layers=1) if small else TextConfig()
    autoencoder = AutoencoderConfig()
    if small:
        autoencoder = AutoencoderConfig(encoder_width=32, encoder_blocks=1, decoder_width=32, decoder_blocks=1)
    transformer = STDiT3Config(
        depth=1 if small else 5,
        hidden_size=64 if small else 192,
        num_heads=2 if small else 6,
        in_channels=autoencoder.latent_channels + FRAME_CHANNELS,
        input_sq_size=64,
        caption_channels=text.channels,
        model_max_length=text.max_words,
        pred_sigma=False,
    )
    return DemoConfig(transformer=transformer, autoencoder=autoencoder, text=text)


def build_parts(config: DemoConfig, vocabulary: tuple[str, ...] | None = None) -> DemoParts:
    """Makes untrained parts on the CPU, over the captions' vocabulary unless another is given."""
    vocabulary = build_vocabulary() if vocabulary is None else vocabulary
    return DemoParts(
        transformer=STDiT3(config.transformer),
        autoencoder=Autoencoder(config.autoencoder),
        text_encoder=TextEncoder(config.text, vocabulary),
        vocabulary=vocabulary,
    )


def save_demo(parts: DemoParts, path: Path) -> None:
    """Writes the parts as float16 with their configuration; the file appears whole or not at all."""
    tensors = {
        f"{name}.{key}": tensor.detach().to("cpu", torch.float16).contiguous()
        for name, module in _modules(parts).items()
        for key, tensor in module.state_dict().items()
    }
    metadata = {
        "format": _FORMAT,
        "transformer": json.dumps(dataclasses.asdict(parts.transformer.config)),
        "autoencoder": json.dumps(dataclasses.asdict(parts.autoencoder.config)),
        "text": json.dumps(dataclasses.asdict(parts.text_encoder.config)),
        "vocabulary": json.dumps(parts.vocabulary),
    }
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, metadata=metadata)
    unfinished.replace(path)


def load_demo(
    path: Path | str = WEIGHTS, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DemoParts:
    """Loads the parts from a file that `save_demo` wrote, for inference.

    Raises FileNotFoundError if there is no such file, ValueError if it is not a demo model's.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no demo weights at {path}: give the path of a demo.safetensors or train one")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} has format {metadata.get('format')!r}, a demo model has {_FORMAT!r}")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    parts = build_parts(_read_config(metadata), tuple(json.loads(metadata["vocabulary"])))
    for name, module in _modules(parts).items():
        _fill(module, name, tensors)
        module.to(device=device, dtype=dtype).eval().requires_grad_(requires_grad=False)
    return parts


def _modules(parts: DemoParts) -> dict[str, nn.Module]:
    return {name: getattr(parts, name) for name in _PARTS}


def _fill(module: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    prefix = f"{name}."
    state = {key.removeprefix(prefix): value.float() for key, value in tensors.items() if key.startswith(prefix)}
    module.load_state_dict(state)


def _read_config(metadata: Mapping[str, str]) -> DemoConfig:
    transformer: dict[str, Any] = json.loads(metadata["transformer"])
    transformer["patch_size"] = tuple(transformer["patch_size"])
    return DemoConfig(
        transformer=STDiT3Config(**transformer),
        autoencoder=AutoencoderConfig(**json.loads(metadata["autoencoder"])),
        text=TextConfig(**json.loads(metadata["text"])),
    )
