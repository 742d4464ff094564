"""The families of Latte and Open-Sora-Plan: presets, limits, loading the published layout, a clip from prompt to frames."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pab.broadcast.rules import KINDS
from pab.families import find_family
from pab.families.latte.family import LATTE
from pab.families.latte.transformer import Latte, latte_config
from pab.families.open_sora_plan.config import plan_tokens
from pab.families.open_sora_plan.family import OPEN_SORA_PLAN_V110, OPEN_SORA_PLAN_V110_221, OPEN_SORA_PLAN_V120
from pab.families.open_sora_plan.transformer import OpenSoraPlan, open_sora_plan_config
from pab.families.tiny_weights import write_tiny_weights
from pab.family import ClipRequest, Family, LoadRequest
from pab.parallel.mesh import NodeGroup, open_group
from pab.sampling.denoise import plan_for
from pab.weights.checkpoint import CheckpointError, check_keys
from tests.golden.broadcast_traces import check_decisions
from tests.pab.denoised import denoised
from tests.pab.worlds import from_the_start
from tests.ranks import run_on_ranks

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TRACES = [
    (LATTE, "latte", "default", "pab236"),
    (LATTE, "latte", "pab347", "pab347"),
    (LATTE, "latte", "pab469", "pab469"),
    (OPEN_SORA_PLAN_V110, "open_sora_plan_v110", "default_150_steps_documented_example", "pab246"),
    (OPEN_SORA_PLAN_V110, "open_sora_plan_v110", "pab357_150", "pab357"),
    (OPEN_SORA_PLAN_V110, "open_sora_plan_v110", "pab579_150", "pab579"),
    (OPEN_SORA_PLAN_V120, "open_sora_plan_v120", "default", "pab2-6"),
]
TINY = {"latte": (16, 32), "open_sora_plan_v110": (65, 32), "open_sora_plan_v120": (9, 32)}
"""Pixel frames, and height and width."""


def clip(family: Family, **changes) -> ClipRequest:
    frames, side = TINY[family.name]
    values = {
        "prompt": "a cat walks over a red carpet", "negative_prompt": None, "seed": 3, "num_frames": frames,
        "height": side, "width": side, "fps": 8, "num_steps": 4, "guidance_scale": 7.5,
    } | changes  # fmt: skip
    return ClipRequest(**values)


@pytest.mark.parametrize(("family", "file", "trace", "preset"), TRACES, ids=lambda value: str(value)[:24])
def test_presets_decide_as_published_on_the_published_schedule(family, file, trace, preset):
    stated = json.loads((GOLDEN / "pab" / f"{file}.json").read_text())["cases"][trace]
    request = clip(family, num_steps=stated["steps_given_to_manager"])
    for precision in family.precisions:
        plan = plan_for(family, request, family.presets[preset], precision)
        assert [int(timestep) for timestep in plan.timesteps] == stated["timesteps_int"]
        check_decisions(plan, stated["first_generation"])


def test_the_paper_s_preset_of_latte_reuses_cross_attention_one_step_less():
    request = clip(LATTE, num_steps=50)
    paper, code = (plan_for(LATTE, request, LATTE.presets[name], "bfloat16") for name in ("pab235", "pab236"))
    assert [plan.computed("spatial") // 28 for plan in (paper, code)] == [33, 33]
    assert [plan.computed("cross") // 28 for plan in (paper, code)] == [23, 22]


@pytest.mark.parametrize("num_steps", [30, 75, 200])
def test_mlp_rules_reuse_at_other_step_counts_unless_a_step_is_a_longer_stretch_of_noise(num_steps):
    for family, blocks in ((LATTE, 5), (OPEN_SORA_PLAN_V110, 7)):
        rules = family.presets[family.defaults.broadcast]
        plan = plan_for(family, clip(family, num_steps=num_steps), rules, "bfloat16")
        reusing = [site for i, site in enumerate(plan.sites) if site.kind == "mlp" and "B" in plan.decisions(i)]
        # Open-Sora-Plan reuses over one step of 150, of which 30 and 75 make a longer stretch of noise; Latte over two of 50.
        shorter = family is OPEN_SORA_PLAN_V110 and num_steps < family.defaults.num_steps
        assert {site.block for site in reusing} == (set() if shorter else set(range(blocks)))
        assert len(reusing) == (0 if shorter else 2 * blocks)


def test_tokens_are_latent_patches():
    assert LATTE.num_tokens(16, 512, 512) == 16 * 32 * 32
    assert plan_tokens(65, 512, 512) == 17 * 32 * 32
    assert plan_tokens(93, 480, 640) == 24 * 30 * 40


LAYOUTS = {
    "latte/full_layout.json": lambda config: Latte(latte_config(config)),
    "osp110/full_layout_221x512x512.json": lambda config: Latte(latte_config(config)),
    "osp120/full_layout_29x480p.json": lambda config: OpenSoraPlan(open_sora_plan_config(config)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_size_weights_load_strictly(layout):
    facts = json.loads((GOLDEN / layout).read_text())
    with torch.device("meta"):
        model = LAYOUTS[layout](facts["config"])
        tensors = {key: torch.empty(shape) for key, shape in facts["state_dict"]}
    model.load_state_dict(tensors, strict=True, assign=True)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == facts["n_elements"]
    del tensors["proj_out.bias"]
    with pytest.raises(CheckpointError, match=r"missing \(1\): proj_out.bias"):
        check_keys({k: v.shape for k, v in model.state_dict().items()}, {k: v.shape for k, v in tensors.items()}, "x")


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*TINY)


def load(family: Family, folder: Path):
    return family.load(LoadRequest(weights=str(folder / family.name), precision="float32", device="cpu"))


def test_a_chinese_prompt_is_read_by_open_sora_plan_1_2_and_by_no_family_whose_program_empties_it(weights):
    read = {}
    for name in TINY:
        chinese = replace(clip(find_family(name)), prompt="一只橙色的猫", negative_prompt="模糊")
        prepared = load(find_family(name), weights).prepare(chinese)
        read[name] = (prepared.prompt, prepared.negative_prompt)
    assert read == {
        "latte": ("", ""),
        "open_sora_plan_v110": ("", ""),
        "open_sora_plan_v120": ("一只橙色的猫", "模糊"),
    }


def render(folder: Path, name: str, mesh: dict | None):
    """Final latents and frames of a tiny clip, and what was counted and planned of all-to-alls."""
    group = NodeGroup() if mesh is None else open_group(device=torch.device("cpu"), **mesh)
    family = find_family(name)
    model, request = load(family, folder), clip(family, num_steps=9)
    plan = plan_for(family, request, from_the_start(family.presets[family.defaults.broadcast]), "float32")
    done = denoised(model, request, plan, group=group)
    counts = {kind: (done.computed.get(kind, 0), plan.computed(kind), plan.total(kind)) for kind in KINDS}
    frames = model.decode(done.latents, request, group).frames
    return done.latents, frames, (done.traffic.all_to_alls, plan.all_to_alls), counts


@pytest.mark.parametrize("name", TINY)
def test_tiny_weights_render_a_clip_alike_on_one_rank_and_on_two(weights, name):
    frames, side = TINY[name]
    latents, video, _, counts = render(weights, name, None)
    assert all(counted == planned for counted, planned, _ in counts.values())
    assert sum(planned for _, planned, _ in counts.values()) < sum(total for *_, total in counts.values())
    assert video.shape == (1, frames, side, side, 3)
    assert video.dtype == torch.uint8
    assert video.float().std() > 1, "the clip is not of one colour"
    root, other = run_on_ranks(2, render, weights, name, {"dp": 1, "cfg": 1, "sp": 2})
    assert ((root[0] - latents).abs().max() / latents.abs().max()).item() < 1e-5
    assert (root[1].int() - video.int()).abs().max() <= 1
    assert other[1].shape[0] == 0
    assert root[2][0] == root[2][1] > 0


def test_families_know_every_site_of_their_models(weights):
    for name in TINY:
        family = find_family(name)
        transformer = load(family, weights).transformer
        stacks = [transformer.transformer_blocks]
        if hasattr(transformer, "temporal_transformer_blocks"):
            stacks.append(transformer.temporal_transformer_blocks)
        names = [site for blocks in zip(*stacks, strict=True) for block in blocks for site in block.sites]
        assert names == [site.name for site in family.sites]


def edited(folder: Path, copy: Path, part: str, **changes) -> Path:
    """A copy of a tiny model whose configuration of one part says something else."""
    for source in folder.iterdir():
        (copy / source.name).mkdir(parents=True)
        for file in source.iterdir():
            (copy / source.name / file.name).symlink_to(file)
    config = copy / part / "config.json"
    values = json.loads(config.read_text()) | changes
    config.unlink()
    config.write_text(json.dumps(values))
    return copy


def test_weights_of_another_clip_length_are_refused(weights):
    request = LoadRequest(weights=str(weights / "open_sora_plan_v110"), precision="float32", device="cpu")
    with pytest.raises(CheckpointError, match="video_length=17, this family's model has 56"):
        OPEN_SORA_PLAN_V110_221.load(request)


@pytest.mark.parametrize(
    ("name", "part", "changes", "message"),
    [
        ("latte", "transformer", {"num_layers": 27}, "num_layers=27, this family's model has 28"),
        ("latte", "transformer", {"activation_fn": "geglu"}, "activation_fn='geglu' is not supported"),
        ("latte", "transformer", {"attention_head_dim": 8}, "cross_attention_dim=32, needs 16"),
        ("latte", "vae", {"_class_name": "AutoencoderTiny"}, "_class_name='AutoencoderTiny', allowed AutoencoderKLT"),
        ("open_sora_plan_v120", "transformer", {"num_layers": 2}, "num_layers=2, this family's model has 32"),
        ("open_sora_plan_v120", "transformer", {"caption_channels": 8}, r"misshaped \(1\): caption_projection.linear_1"),
    ],
)  # fmt: skip
def test_configurations_of_another_model_are_refused(weights, tmp_path, name, part, changes, message):
    folder = edited(weights / name, tmp_path / "copy", part, **changes)
    with pytest.raises(ValueError, match=message):
        find_family(name).load(LoadRequest(weights=str(folder), precision="float32", device="cpu"))


def test_digest_names_the_weights_in_the_folder(weights, tmp_path):
    write_tiny_weights("latte", tmp_path / "again")
    write_tiny_weights("latte", tmp_path / "other", seed=1)
    digest = LATTE.weights_digest(str(weights / "latte"))
    assert LATTE.weights_digest(str(tmp_path / "again")) == digest
    assert LATTE.weights_digest(str(tmp_path / "other")) != digest


def test_unreachable_hub_says_which_folder_to_lay_out(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for family, hub_id in ((LATTE, "maxin-cn/Latte-1"), (OPEN_SORA_PLAN_V120, "LanguageBind/Open-Sora-Plan-v1.2.0")):
        with pytest.raises(CheckpointError, match=f"download {hub_id} at revision main"):
            family.load(LoadRequest(weights=None, precision="float32", device="cpu"))
