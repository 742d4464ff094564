"""LoRAs added to the weights: every layout that is read, against the library's own converters and the definition."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pab.broadcast.rules import NO_BROADCAST
from pab.family import ClipRequest, LoadRequest
from pab.library.parts import library_class
from pab.library.video import DiffusersVideo
from pab.weights.lora import Lora
from tests.pab.denoised import relative
from tests.pab.library_worlds import WORLDS

RANK = 4


STRENGTH = 0.5


WAN_TARGETS = {
    "self_attn.q": "attn1.to_q", "self_attn.o": "attn1.to_out.0", "cross_attn.k": "attn2.to_k", "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*WORLDS)


def parameters(weights: Path, name: str, component: str = "transformer") -> dict[str, Tensor]:
    return load_file(weights / name / component / "model.safetensors")


def loaded(weights: Path, name: str, *loras: Lora) -> DiffusersVideo:
    model = WORLDS[name].family.load(
        LoadRequest(weights=str(weights / name), precision="float32", device="cpu", loras=loras)
    )
    assert isinstance(model, DiffusersVideo)
    return model


def loaded_parameters(model: DiffusersVideo) -> dict[str, Tensor]:
    """The parameters of a loaded transformer by the names that they have in a file."""
    held = model.denoise.experts[0].state_dict()
    return {key.replace(".block.", ".").replace(".module.", "."): value for key, value in held.items()}


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def halves(module: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    return drawn((RANK, *module.shape[1:]), seed), drawn((module.shape[0], RANK), seed + 1)


def fused(
    held: Mapping[str, Tensor], converted: Mapping[str, Tensor], alphas: Mapping[str, float]
) -> dict[str, Tensor]:
    """W + strength * alpha / rank * up @ down, of keys as the library writes them."""
    result = dict(held)
    for key, up in converted.items():
        module, half, rest = re.fullmatch(r"transformer\.(.+)\.lora_([AB])\.(weight|bias)", key).groups()
        if half == "A":
            continue
        scale = STRENGTH * alphas.get(module, RANK) / RANK
        if rest == "bias":
            result[f"{module}.bias"] = result[f"{module}.bias"] + scale * up
        else:
            down = converted[key.replace("lora_B", "lora_A")]
            result[f"{module}.weight"] = result[f"{module}.weight"] + scale * (up @ down)
    return result


def same(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> set[str]:
    """The keys that a LoRA changed; all parameters are as expected."""
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-6, msg=key)
    return {key for key in held if not torch.equal(ours[key], held[key])}


def wan_file(style: str, held: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A LoRA of a Wan of two blocks in one of the layouts, and alpha by module of the library."""
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for block in range(2):
        targets = WAN_TARGETS
        if style == "kohya":  # the library's converter wants them all
            targets = targets | {
                f"{kind}_attn.{part}": f"attn{number}.to_{'out.0' if part == 'o' else part}"
                for number, kind in ((1, "self"), (2, "cross"))
                for part in "qkvo"
            }
        for at, (original, module) in enumerate(targets.items()):
            library, dotted = f"blocks.{block}.{module}", f"blocks.{block}.{original}"
            down, up = halves(held[f"{library}.weight"], 100 * block + 2 * at)
            if style == "library":
                tensors |= {f"transformer.{library}.lora_A.weight": down, f"transformer.{library}.lora_B.weight": up}
            elif style == "down and up":
                tensors |= {f"{library}.lora.down.weight": down, f"{library}.lora.up.weight": up}
            else:
                name = f"lora_unet_{dotted.replace('.', '_')}" if style == "kohya" else f"diffusion_model.{dotted}"
                tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                tensors[f"{name}.alpha"] = torch.tensor(2.0)
                alphas[library] = 2.0
    return tensors, alphas


@pytest.mark.parametrize("style", ["library", "down and up", "kohya", "original"])
def test_layouts_of_wan_are_what_the_library_s_converters_make_of_them(weights, tmp_path, style):
    held = parameters(weights, "wan")
    tensors, alphas = wan_file(style, held)
    save_file(tensors, tmp_path / "lora.safetensors")
    converted, scaled = dict(tensors), alphas
    if style == "down and up":
        converted = {
            f"transformer.{key}".replace("lora.down", "lora_A").replace("lora.up", "lora_B"): value
            for key, value in tensors.items()
        }
    elif style != "library":
        converted, scaled = library_class("WanPipeline").lora_state_dict(dict(tensors)), {}  # has alpha in the halves
    expected = fused(held, converted, scaled)
    model = loaded(weights, "wan", lora_of(tmp_path))
    changed = same(loaded_parameters(model), expected, held)
    assert changed == {key.removeprefix("transformer.").replace("lora_B.", "") for key in converted if "lora_B" in key}


def lora_of(folder: Path) -> Lora:
    return Lora(place=str(folder / "lora.safetensors"), strength=STRENGTH, component="transformer")


def test_whole_differences_of_weights_biases_norms_and_modulation_are_added(weights, tmp_path):
    held = parameters(weights, "wan")
    meant = {
        "diffusion_model.blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
        "diffusion_model.blocks.1.norm3.diff": "blocks.1.norm2.weight",
        "diffusion_model.blocks.1.norm3.diff_b": "blocks.1.norm2.bias",
        "diffusion_model.blocks.1.ffn.2.diff_b": "blocks.1.ffn.net.2.bias",
        "diffusion_model.blocks.0.diff_m": "blocks.0.scale_shift_table",
        "diffusion_model.head.diff_m": "scale_shift_table",
        "diffusion_model.head.head.diff": "proj_out.weight",
        "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
        "diffusion_model.time_projection.1.diff_b": "condition_embedder.time_proj.bias",
        "diffusion_model.text_embedding.0.diff_b": "condition_embedder.text_embedder.linear_1.bias",
    }
    tensors = {key: drawn(tuple(held[name].shape), at) for at, (key, name) in enumerate(meant.items())}
    save_file(tensors, tmp_path / "lora.safetensors")
    expected = held | {name: held[name] + STRENGTH * tensors[key] for key, name in meant.items()}
    assert same(loaded_parameters(loaded(weights, "wan", lora_of(tmp_path))), expected, held) == set(meant.values())


def test_a_product_changes_a_convolution_and_a_bias_of_the_upper_half_is_scaled_like_it(weights, tmp_path):
    held = parameters(weights, "wan")
    down, up = halves(held["patch_embedding.weight"], 1)
    bias = drawn((24,), 3)
    save_file(
        {
            "diffusion_model.patch_embedding.lora_down.weight": down,
            "diffusion_model.patch_embedding.lora_up.weight": up[..., None, None, None],
            "diffusion_model.patch_embedding.lora_B.bias": bias,
            "diffusion_model.patch_embedding.alpha": torch.tensor([1.0]),
        },
        tmp_path / "lora.safetensors",
    )
    product = (up @ down.flatten(1)).view(held["patch_embedding.weight"].shape)
    expected = held | {
        "patch_embedding.weight": held["patch_embedding.weight"] + STRENGTH / RANK * product,
        "patch_embedding.bias": held["patch_embedding.bias"] + STRENGTH / RANK * bias,
    }
    assert len(same(loaded_parameters(loaded(weights, "wan", lora_of(tmp_path))), expected, held)) == 2


@pytest.mark.parametrize(
    ("stated", "scale"),
    [
        ({"lora_alpha": 8, "r": 4}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"lora_alpha": 4, "alpha_pattern": {"attn1.to_q": 16}}, 4.0),
        ({}, 1.0),
    ],
)
def test_alpha_is_read_from_the_metadata_that_the_library_writes(weights, tmp_path, stated, scale):
    held = parameters(weights, "wan")
    down, up = halves(held["blocks.0.attn1.to_q.weight"], 1)
    module = "transformer.blocks.0.attn1.to_q"
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in stated.items()})}
    file = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    save_file(file, tmp_path / "lora.safetensors", metadata if stated else None)
    expected = held | {
        "blocks.0.attn1.to_q.weight": held["blocks.0.attn1.to_q.weight"] + STRENGTH * scale * (up @ down)
    }
    same(loaded_parameters(loaded(weights, "wan", lora_of(tmp_path))), expected, held)


HUNYUAN = {
    "double_blocks.0.img_attn_qkv": ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k",
                                     "transformer_blocks.0.attn.to_v"),
    "double_blocks.1.txt_attn_qkv": ("transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.add_k_proj",
                                     "transformer_blocks.1.attn.add_v_proj"),
    "double_blocks.0.txt_attn_proj": ("transformer_blocks.0.attn.to_add_out",),
    "double_blocks.0.img_mlp.fc1": ("transformer_blocks.0.ff.net.0.proj",),
    "double_blocks.0.txt_mod.linear": ("transformer_blocks.0.norm1_context.linear",),
    "txt_in.individual_token_refiner.blocks.0.mlp.fc2": ("context_embedder.token_refiner.refiner_blocks.0.ff.net.2",),
    "time_in.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "single_blocks.1.linear2": ("single_transformer_blocks.1.proj_out",),
}  # fmt: skip


LTX = {
    "patchify_proj": ("proj_in",),
    "adaln_single.linear": ("time_embed.linear",),
    "transformer_blocks.1.attn1.to_q": ("transformer_blocks.1.attn1.to_q",),
    "transformer_blocks.0.ff.net.2": ("transformer_blocks.0.ff.net.2",),
}
HUNYUAN_15 = {
    **{name: HUNYUAN[name] for name in HUNYUAN if name.startswith(("double", "txt_in"))},
    "time_in.mlp.2": ("time_embed.timestep_embedder.linear_2",),
    "byt5_in.fc3": ("context_embedder_2.linear_3",),
    "vision_in.proj.1": ("image_embedder.linear_1",),
}
LTX2 = {
    "patchify_proj": ("proj_in",),
    "audio_patchify_proj": ("audio_proj_in",),
    "audio_adaln_single.linear": ("audio_time_embed.linear",),
    "adaln_single.emb.timestep_embedder.linear_1": ("time_embed.emb.timestep_embedder.linear_1",),
    "av_ca_a2v_gate_adaln_single.linear": ("av_cross_attn_video_a2v_gate.linear",),
    "av_ca_audio_scale_shift_adaln_single.linear": ("av_cross_attn_audio_scale_shift.linear",),
    "transformer_blocks.1.audio_to_video_attn.to_q": ("transformer_blocks.1.audio_to_video_attn.to_q",),
    "transformer_blocks.0.audio_ff.net.2": ("transformer_blocks.0.audio_ff.net.2",),
}
COGVIDEOX = {
    "transformer_blocks.0.attn1.to_k": ("transformer_blocks.0.attn1.to_k",),
    "transformer_blocks.1.ff.net.0.proj": ("transformer_blocks.1.ff.net.0.proj",),
}


def joined_file(held: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]], flat: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for at, (original, modules) in enumerate(names.items()):
        whole = torch.cat([held[f"{module}.weight"] for module in modules])
        down, up = halves(whole, 10 * at)
        name = f"lora_unet_{original.replace('.', '_')}" if flat else f"diffusion_model.{original}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors


def added(held: Mapping[str, Tensor], names: Mapping[str, tuple[str, ...]], tensors: Mapping[str, Tensor]) -> Any:
    expected, keys = dict(held), list(tensors)
    for at, modules in enumerate(names.values()):
        product = tensors[keys[2 * at + 1]] @ tensors[keys[2 * at]]
        for module, rows in zip(modules, product.split([len(held[f"{m}.weight"]) for m in modules]), strict=True):
            expected[f"{module}.weight"] = held[f"{module}.weight"] + STRENGTH * rows
    return expected


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("family", "names"),
    [
        (
            "hunyuan_video",
            HUNYUAN
            | {
                "single_blocks.0.linear1": tuple(
                    f"single_transformer_blocks.0.{module}" for module in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                )
            },
        ),
        ("ltx", LTX),
        ("ltx2", LTX2),
        ("hunyuan_video_15_480p", HUNYUAN_15),
        ("cogvideox_5b", COGVIDEOX),
    ],
)  # fmt: skip
def test_names_of_the_original_repositories_are_those_of_the_library(weights, tmp_path, family, names, flat):
    held = parameters(weights, family)
    tensors = joined_file(held, names, flat)
    save_file(tensors, tmp_path / "lora.safetensors")
    expected = added(held, names, tensors)
    assert len(same(loaded_parameters(loaded(weights, family, lora_of(tmp_path))), expected, held)) == sum(
        map(len, names.values())
    )


def test_names_of_hunyuan_video_are_what_the_library_s_converter_makes_of_them(weights):
    """But for matrices with the MLP's rows in them, which it takes to be of the published width."""
    held = parameters(weights, "hunyuan_video")
    tensors = joined_file(held, {name: HUNYUAN[name] for name in HUNYUAN if "mlp.fc2" not in name}, flat=False)
    converted = library_class("HunyuanVideoPipeline").lora_state_dict(dict(tensors))
    expected = added(held, {name: HUNYUAN[name] for name in HUNYUAN if "mlp.fc2" not in name}, tensors)
    assert same(fused(held, converted, {}), expected, held)


def test_names_of_ltx2_are_what_the_library_s_converter_makes_of_them(weights):
    held = parameters(weights, "ltx2")
    tensors = joined_file(held, LTX2, flat=False)
    converted = library_class("LTX2Pipeline").lora_state_dict(dict(tensors))
    expected = added(held, LTX2, tensors)
    assert same(fused(held, converted, {}), expected, held)


def written(weights: Path, folder: Path, name: str) -> tuple[list[Lora], dict[str, dict[str, Tensor]]]:
    """Writes a LoRA for each component of a family; returns them, and the parameters with them added."""
    loras, expected = [], {}
    for at, component in enumerate(WORLDS[name].family.loras.components):
        held = parameters(weights, name, component)
        chosen = [key.removesuffix(".weight") for key in held if key.endswith(("to_k.weight", "proj.weight"))]
        names = {module: (module,) for module in chosen if held[f"{module}.weight"].dim() == 2}
        tensors = {key: (1 + at) * value for key, value in joined_file(held, names, flat=False).items()}
        place = str(folder / f"{component}.safetensors")
        save_file({key.replace("diffusion_model.", "transformer."): value for key, value in tensors.items()}, place)
        loras.append(Lora(place=place, strength=STRENGTH, component=component))
        expected[component] = added(held, names, tensors)
    return loras, expected


def differs_by_loras_alone(weights: Path, name: str, loras: list[Lora], pipeline: Any) -> None:
    world, request = WORLDS[name], WORLDS[name].clip(guidance_scale=1.0)
    model = loaded(weights, name, *loras)
    ours = world.render(model, request, NO_BROADCAST).latents
    theirs = replace(world, pipeline=pipeline).library_latents(weights, model, request)
    assert relative(ours, theirs) < 1e-5
    assert relative(world.library_latents(weights, model, request), theirs) > 1e-3


@pytest.mark.parametrize("name", ["wan22_a14b", "ltx", "hunyuan_video_15_480p"])
def test_latents_are_those_of_the_library_s_pipeline_with_the_weights_added_by_hand(weights, tmp_path, name):
    loras, expected = written(weights, tmp_path, name)

    def fused_by_hand(folder: Path, request: ClipRequest) -> Any:
        pipeline = WORLDS[name].pipeline(folder, request)
        for component, state in expected.items():
            getattr(pipeline, component).load_state_dict(state, assign=True)
        return pipeline

    differs_by_loras_alone(weights, name, loras, fused_by_hand)


@pytest.mark.parametrize("name", ["wan22_a14b", "cogvideox_2b", "ltx", "hunyuan_video"])
def test_latents_are_those_of_the_library_s_pipeline_with_adapters_by_peft(weights, tmp_path, name):
    """The library computes the products beside the weights; here they are added to them."""
    loras, _ = written(weights, tmp_path, name)

    def with_adapters(folder: Path, request: ClipRequest) -> Any:
        pipeline = WORLDS[name].pipeline(folder, request)
        for lora in loras:
            second = {"load_into_transformer_2": True} if lora.component == "transformer_2" else {}
            pipeline.load_lora_weights(lora.place, adapter_name=lora.component, **second)
            getattr(pipeline, str(lora.component)).set_adapters([lora.component], [STRENGTH])
        return pipeline

    differs_by_loras_alone(weights, name, loras, with_adapters)


def test_several_loras_are_added_and_the_sum_is_cast_once(weights, tmp_path):
    held = parameters(weights, "wan")
    key = "blocks.0.attn1.to_q"
    sums = held[f"{key}.weight"]
    loras = []
    for at in range(2):
        tensor = drawn(tuple(sums.shape), at)
        save_file({f"{key}.diff": tensor}, tmp_path / f"{at}.safetensors")
        loras.append(Lora(place=str(tmp_path / f"{at}.safetensors"), component="transformer"))
        sums = sums + tensor
    model = WORLDS["wan"].family.load(
        LoadRequest(weights=str(weights / "wan"), precision="bfloat16", device="cpu", loras=tuple(loras))
    )
    assert torch.equal(loaded_parameters(model)[f"{key}.weight"], sums.bfloat16())
