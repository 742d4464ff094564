"""Parts that tiny random models of several families share: a component's folder, a T5 encoder with its tokenizer."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

SENTENCES = (
    "a cat walks over a red carpet in the sun",
    "waves roll onto a beach at dawn, seen from above",
    "a slow pan over mountains covered in snow",
    "two birds fly past tall trees; the camera follows them",
    "time lapse of clouds above a city at night",
    "aesthetic score: 6.5. motion score: 12.0. camera motion: pan left.",
    "the quick brown fox jumps over the lazy dog 0123456789",
)
"""What the tiny tokenizer learns its pieces from."""


def write_image_processor(folder: Path, side: int) -> None:
    """Writes the preparation of images for a CLIP that reads pictures of so many pixels a side."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2))


def write_component(folder: Path, module: nn.Module, config: Mapping[str, object]) -> None:
    """Writes `model.safetensors` and `config.json` of one component."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def write_t5(folder: Path, *, channels: int, max_length: int, architecture: str = "T5") -> None:
    """Writes a two-layer T5 or UMT5 encoder with random weights and a tokenizer trained on a few sentences."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_spiece(folder / "spiece.model")
    tokenizer = {
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 0,
        "additional_special_tokens": [],
        "model_max_length": max_length,
        "legacy": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2))
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=vocabulary,
        d_model=channels,
        d_kv=8,
        d_ff=2 * channels,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    encoder = getattr(transformers, f"{architecture}EncoderModel")(config)
    tensors = {key: value for key, value in encoder.state_dict().items() if key != "encoder.embed_tokens.weight"}
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
    config.to_json_file(folder / "config.json", use_diff=False)


def write_t5_and_tokenizer(folder: Path, *, channels: int, max_length: int, architecture: str = "T5") -> None:
    """Writes what `write_t5` does into `text_encoder/` and `tokenizer/`, as the diffusers library lays them out."""
    write_t5(folder / "text_encoder", channels=channels, max_length=max_length, architecture=architecture)
    (folder / "tokenizer").mkdir()
    for name in ("spiece.model", "tokenizer_config.json"):
        (folder / "text_encoder" / name).rename(folder / "tokenizer" / name)


def write_byte_tokenizer(
    folder: Path,
    settings: Mapping[str, object],
    *,
    specials: Sequence[str],
    size: int,
    learned: Sequence[str] = (),
    begin: str | None = None,
) -> int:
    """Writes a byte-level tokenizer of at most `size` tokens; returns their number.

    `learned`: what it learns its tokens from besides `SENTENCES`. `specials` are its first tokens, in their order; every text
    begins with `begin`, one of them. `settings`: its `tokenizer_config.json`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SENTENCES, *learned], trainer)
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return int(tokenizer.get_vocab_size())


def write_scheduler(folder: Path, config: Mapping[str, object]) -> None:
    """Writes `scheduler/scheduler_config.json`."""
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config, indent=2))


def write_spiece(path: Path) -> int:
    """Trains a sentencepiece model on `SENTENCES` and writes it; returns its number of pieces."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=128,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
