"""LoRA files: what a user writes of one, what is refused by key, shape or name, and what its digest names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pab.family import LoadRequest
from pab.weights.files import CheckpointError
from pab.weights.lora import Lora, find_lora, pin_lora, read_header, read_lora, shapes_in
from pab.weights.lora_keys import find_changes
from tests.pab.library_worlds import WORLDS

Q = "blocks.0.self_attn.q"
GOOD = {f"diffusion_model.{Q}.lora_A.weight": (4, 24), f"diffusion_model.{Q}.lora_B.weight": (24, 4)}


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*WORLDS)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (GOOD | {"diffusion_model.blocks.2.ffn.0.diff": (48, 24)}, r"key 'diffusion_model.blocks.2.ffn.0.diff' fits nowhere"),
        (GOOD | {"text_encoder.layers.0.diff": (2,)}, "key 'text_encoder.layers.0.diff' fits nowhere"),
        (GOOD | {"blocks.0.attn1.to_q.weight": (24, 24)}, "key 'blocks.0.attn1.to_q.weight' fits nowhere: keys of a LoRA"),
        (GOOD | {"blocks.0.attn1.to_q.lora_C.weight": (1, 1)}, "lora_C.weight' fits nowhere"),
        ({f"{Q}.diff": (24, 25)}, rf"key '{Q}.diff' changes \[24, 25\], but .*to_q.weight has \[24, 24\]"),
        ({f"{Q}.lora_A.weight": (4, 24)}, f"key '{Q}.lora_A.weight' has no up matrix"),
        ({f"{Q}.alpha": ()}, f"key '{Q}.alpha' has no down matrix"),
        ({f"{Q}.lora_A.weight": (4, 24), f"{Q}.lora_B.weight": (24, 5)}, "the ranks differ"),
        ({f"{Q}.lora_A.weight": (4, 20), f"{Q}.lora_B.weight": (24, 4)}, r"lora_B.weight' changes \[24, 20\]"),
        ({f"{Q}.dora_scale": (24,)}, f"key '{Q}.dora_scale' is of DoRA"),
        ({f"{Q}.lokr_w1": (24,)}, "is of LoKr"),
        ({"a.diff": (1,), "diffusion_model.a.diff": (1,)}, "'a.diff' and 'diffusion_model.a.diff' mean the same"),
        ({}, "holds no key of a LoRA"),
    ],
)  # fmt: skip
def test_a_key_or_a_shape_that_fits_nowhere_is_named(weights, tmp_path, shapes, message):
    path = tmp_path / "bad.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path)
    held = shapes_in(weights / "wan" / "transformer")
    with pytest.raises(CheckpointError, match=f"bad.safetensors.*{message}"):
        find_changes(read_header(path), held, WORLDS["wan"].family.loras, component="transformer", file=str(path))
    lora = Lora(place=str(path), component="transformer")
    request = LoadRequest(weights=str(weights / "wan"), precision="float32", device="cpu", loras=(lora,))
    with pytest.raises(CheckpointError, match=f"bad.safetensors.*{message}"):
        WORLDS["wan"].family.load(request)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"a.diff": torch.zeros(64)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        CheckpointError, match=r"lora\.safetensors has .* bytes, its header says .*; the download was cut short"
    ):
        pin_lora(Lora(place=str(path)))
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"lora.safetensors"):
        read_header(path)


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("style.safetensors", Lora(place="style.safetensors")),
        ("style.safetensors:0.8", Lora(place="style.safetensors", strength=0.8)),
        (
            "style.safetensors:-1:transformer_2",
            Lora(place="style.safetensors", strength=-1.0, component="transformer_2"),
        ),
        ("style.safetensors:transformer", Lora(place="style.safetensors", component="transformer")),
        ("some/model/sub/high.safetensors@v2:.5", Lora(place="some/model/sub/high.safetensors@v2", strength=0.5)),
        ("some/model", Lora(place="some/model")),
    ],
)
def test_what_a_user_writes_of_a_lora(text, lora):
    assert read_lora(text) == lora
    assert read_lora(str(lora)) == lora
    exact = replace(lora, strength=1e-7 / 3)
    assert read_lora(exact.text) == exact


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("style.safetensors:0", "a strength of 0 adds nothing"),
        ("style.pt", "'style.pt' is neither a .safetensors file nor a hub id"),
        ("style.safetensors:0.8:1", "neither a .safetensors file nor a hub id"),
    ],
)
def test_what_is_no_lora_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_lora(text)


def test_a_digest_names_content_strength_and_component_and_not_the_file_s_name(tmp_path):
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        save_file({"x.diff": torch.tensor([value])}, tmp_path / f"{name}.safetensors")
    a, b, c = (Lora(place=str(tmp_path / f"{name}.safetensors"), component="transformer") for name in "abc")
    digest = pin_lora(a).digest
    assert len(digest) == 16
    assert pin_lora(b).digest == digest
    others = [c, replace(a, strength=0.5), replace(a, component="transformer_2")]
    assert len({digest, *(pin_lora(other).digest for other in others)}) == 4
    assert find_lora(pin_lora(a)) == tmp_path / "a.safetensors"
    with pytest.raises(
        CheckpointError,
        match=r"nowhere/at/all\.safetensors' does not exist; needs a \.safetensors file or organisation/name/file",
    ):
        pin_lora(Lora(place="./nowhere/at/all.safetensors"))
