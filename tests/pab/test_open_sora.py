"""The Open-Sora family: its facts, its text side, loading the published layout, and a clip from prompt to frames."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pab.broadcast.plan import make_plan
from pab.conditioning.frame_masks import place_entries, read_strategy
from pab.families import find_family
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora.levels import levels, model_fps, model_size
from pab.families.open_sora.load import load_vae, prepare_texts
from pab.families.open_sora.prompts import Scores, model_prompt, with_scores
from pab.families.open_sora.sizes import SIZES, image_size, latent_frames, nominal_size, num_tokens, rendered_size
from pab.families.open_sora.weights import find_weights
from pab.family import LoadRequest
from pab.kernels import choice
from pab.sampling.denoise import plan_for
from pab.sampling.rectified_flow import round_to
from pab.text.prompt_cleaning import clean
from pab.tiny_weights.__main__ import main as write_tiny
from pab.weights.checkpoint import CheckpointError
from tests.golden.broadcast_traces import check_decisions
from tests.pab.conftest import TinyWeights
from tests.pab.open_sora_ranks import CLIP, encode_and_render, render, t5_text
from tests.ranks import run_on_ranks

TRACES = json.loads((Path(__file__).parents[1] / "data/golden/pab/open_sora.json").read_text())["cases"]
PRESET_OF_TRACE = {"default_480p_9x16_51f_bf16": "pab246", "pab357_480p_bf16": "pab357", "pab579_480p_bf16": "pab579"}
PROMPTS = ["a cat", "two birds fly past tall trees; the camera follows them", "", "waves", "a city at night", "snow"]


@pytest.fixture(scope="module")
def weights(tiny_weights: TinyWeights) -> Path:
    return tiny_weights("open_sora") / "open_sora"


def load_request(folder: Path) -> LoadRequest:
    return LoadRequest(weights=str(folder), precision="float32", device="cpu")


@pytest.mark.parametrize(("trace", "preset"), PRESET_OF_TRACE.items())
def test_presets_decide_as_published_at_480p(trace: str, preset: str) -> None:
    request = replace(CLIP, num_frames=51, height=480, width=848, num_steps=30)
    plan = plan_for(OPEN_SORA, request, OPEN_SORA.presets[preset], "bfloat16")
    assert [int(level) for level in plan.timesteps] == TRACES[trace]["timesteps_int"]
    check_decisions(plan, TRACES[trace]["first_generation"])
    assert plan.computed("mlp") == 56 * 30 - 10 * 6


@pytest.mark.parametrize("trace", sorted(TRACES))
def test_noise_levels_are_the_published_ones_at_every_traced_size(trace: str) -> None:
    stated = TRACES[trace]
    request = replace(
        CLIP, num_frames=stated["num_frames"], height=stated["height"] // 8 * 8, width=stated["width"] // 8 * 8,
        num_steps=30,
    )  # fmt: skip
    assert [int(level) for level in OPEN_SORA.timesteps(request, stated["dtype"])] == stated["timesteps_int"]


@pytest.mark.parametrize(("height", "width", "num_frames", "num_steps"), [(240, 424, 102, 30), (720, 1280, 204, 50)])
def test_mlp_rules_reuse_at_other_sizes_and_step_counts(
    height: int, width: int, num_frames: int, num_steps: int
) -> None:
    request = replace(CLIP, num_frames=num_frames, height=height, width=width, num_steps=num_steps)
    plan = plan_for(OPEN_SORA, request, OPEN_SORA.presets["pab246"], "bfloat16")
    decisions = {plan.decisions(plan.index[f"{stack}_blocks.4.mlp"]) for stack in ("spatial", "temporal")}
    assert [(d.count("B"), d.count("S")) for d in decisions] == [(6, 3)]
    assert "B" not in plan.decisions(plan.index["spatial_blocks.5.mlp"])


def test_sizes_of_the_table_render_within_the_limits_and_keep_their_nominal_size() -> None:
    limits = OPEN_SORA.limits
    found = set()
    for sizes in SIZES.values():
        for height, width in sizes:
            rendered = rendered_size(height, width)
            assert rendered[0] in limits.height
            assert rendered[1] in limits.width
            assert rendered_size(*nominal_size(*rendered)) == rendered
            found.add(nominal_size(*rendered))
    assert len(found) == sum(map(len, SIZES.values())) - 2, "two sizes render as their neighbours do"
    assert nominal_size(480, 848) == (480, 854)
    assert nominal_size(200, 200) == (200, 200)
    assert num_tokens(51, 480, 848) == 23_850
    assert max(num_tokens(408, *size) for size in SIZES["720p"]) <= limits.max_tokens
    assert [latent_frames(n) for n in (1, 17, 24, 51, 408)] == [1, 5, 7, 15, 120]


def test_model_is_told_nominal_size_and_frame_rate_in_its_precision() -> None:
    request = replace(CLIP, height=480, width=848)
    assert model_size(request, "bfloat16") == (480, 856)
    assert model_size(request, "float32") == (480, 854)
    assert model_fps(request) == 24
    assert model_fps(replace(request, num_frames=1)) == 120
    seen = OPEN_SORA.timesteps(request, "bfloat16")
    assert seen == tuple(round_to("bfloat16", level) for level in levels(request, "bfloat16"))


def test_unknown_sizes_are_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="resolution='1080p', allowed 144p, 240p"):
        image_size("1080p", "9:16")
    with pytest.raises(ValueError, match="aspect_ratio='5:9', allowed 3:8"):
        image_size("480p", "5:9")


def test_prompts_are_scored_unless_they_say_it_themselves_then_cleaned() -> None:
    assert model_prompt("A  Cat (at dawn)!", Scores()) == "a cat at dawn ! aesthetic score: 6.5."
    assert with_scores("x aesthetic score: 4.0.", Scores(motion=3.0)) == "x aesthetic score: 4.0. motion score: 3.0."
    assert model_prompt("|0| a sunny day |2| rain", Scores(aesthetic=None)) == "a sunny day"
    prepared = prepare_texts(replace(CLIP, prompt="A CAT", negative_prompt="BLURRY, <b>ugly</b>"))
    assert (prepared.prompt, prepared.negative_prompt) == ("a cat aesthetic score: 6.5.", "blurry, ugly")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("see www.site.com/page for MORE", "see for more"),
        ("&amp;quot; tag @somebody #hash", "tag hash"),
        ("file.jpg jc6640vc 1920x1080 at 12:30", "at 12:30"),
        ("free download free now", "now"),
        ("well_known - but - not - many", "well known but not many"),
        ("two-part name", "two-part name"),
    ],
)  # fmt: skip
def test_captions_are_cleaned_by_the_published_rules(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("一只橙色的猫在窗台上睡觉", "一只橙色的猫在窗台上睡觉"),
        ("雨后的小巷，灯光映在水面上", "雨后的小巷, 灯光映在水面上"),
        ("A cat 猫 ㈱ 㐀", "a cat 猫"),  # other CJK signs go in either case
        ("a quiet street after rain", "a quiet street after rain"),
    ],
)
def test_ideographs_stay_only_where_the_family_s_own_program_keeps_them(text: str, kept: str) -> None:
    assert clean(text, keep_ideographs=True) == kept
    assert not any("\u4e00" <= letter <= "\u9fff" for letter in clean(text))


def test_mask_strategies_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'0,a': .*needs whole numbers"):
        read_strategy("0,a")
    with pytest.raises(ValueError, match="has 7 parts, needs at most 6"):
        read_strategy("0,0,0,0,1,0,0")
    with pytest.raises(ValueError, match=r"edit ratio 1\.5, allowed 0 to 1"):
        read_strategy("0,0,0,0,1,1.5")
    with pytest.raises(ValueError, match="names reference 1, the clip has 1"):
        place_entries(read_strategy("0,1"), [5], 15, align=None)


def test_a_prompt_has_the_same_numbers_alone_and_in_company(weights: Path) -> None:
    text = t5_text(weights)
    together = text(PROMPTS)
    assert together.y_BLC.shape == (6, 48, 32)
    for i, prompt in enumerate(PROMPTS):
        alone = text([prompt])
        assert torch.equal(alone.y_BLC[0], together.y_BLC[i])
        assert torch.equal(alone.mask_BL[0], together.mask_BL[i])
    assert together.mask_BL.sum(dim=1).tolist()[2] == 1, "an empty prompt is its end token"


def test_padding_does_not_change_a_prompt(weights: Path) -> None:
    short, long = t5_text(weights, 20)(["waves"]), t5_text(weights, 40)(["waves"])
    used = int(short.mask_BL.sum())
    torch.testing.assert_close(short.y_BLC[:, :used], long.y_BLC[:, :used], rtol=0, atol=1e-6)


def test_prompts_too_long_for_the_encoder_are_told(weights: Path) -> None:
    states = t5_text(weights, 8)(["a cat", "time lapse of clouds above a city at night"])
    assert states.warnings[0] == ()
    assert "the text encoder reads the first 8" in states.warnings[1][0]


def test_tiny_weights_render_a_clip_alike_on_one_rank_and_on_several(weights: Path) -> None:
    states, latents, frames = encode_and_render(weights, PROMPTS, 1)
    assert frames.shape == (1, 34, 112, 128, 3)
    assert frames.dtype == torch.uint8
    assert frames.float().std() > 1, "the clip is not of one colour"
    ranks = run_on_ranks(4, encode_and_render, weights, PROMPTS, 2)
    assert all(torch.equal(rank[0], states) for rank in ranks)
    torch.testing.assert_close(ranks[0][1], latents, rtol=0, atol=2e-5)
    assert (ranks[0][2].int() - frames.int()).abs().max() <= 1
    assert [rank[2].shape[0] for rank in ranks] == [1, 0, 0, 0]


def test_broadcast_and_prompt_change_the_clip(weights: Path) -> None:
    request = replace(CLIP, num_frames=17)
    results = [
        render(weights, replace(request, prompt=prompt), broadcast, 1)[0]
        for prompt, broadcast in (("a cat", "none"), ("a dog", "none"), ("a cat", "pab579"))
    ]
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_one_frame_gives_an_image(weights: Path) -> None:
    assert OPEN_SORA.limits.images
    _, frames = render(weights, replace(CLIP, num_frames=1), "pab246", 1)
    assert frames.shape == (1, 1, 112, 128, 3)
    with pytest.raises(ValueError, match="num_frames=16, rectified flow needs 1 or at least 17 frames"):
        OPEN_SORA.timesteps(replace(CLIP, num_frames=16), "bfloat16")


def test_wrong_weights_are_refused_with_every_key(weights: Path, tmp_path: Path) -> None:
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_bytes((weights / part / "config.json").read_bytes())
        tensors = load_file(weights / part / "model.safetensors")
        first, second = list(tensors)[:2]
        tensors["extra.weight"] = tensors.pop(first)
        tensors[second] = tensors[second].new_zeros(3)
        save_file(tensors, tmp_path / part / "model.safetensors")
        if part == "transformer":
            with pytest.raises(CheckpointError, match="no vae/, text_encoder/"):
                OPEN_SORA.load(load_request(tmp_path))
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(CheckpointError, match=r"(?s)transformer.*missing \(1\).*surplus \(1\): extra.*misshaped \(1\)"):
        OPEN_SORA.load(load_request(tmp_path))
    with pytest.raises(CheckpointError, match=r"(?s)VAE.*missing \(1\).*surplus \(1\): extra.*misshaped \(1\)"):
        load_vae(tmp_path / "vae", torch.float32, torch.device("cpu"))


def test_weights_that_are_nowhere_are_told_with_the_whole_layout() -> None:
    with pytest.raises(CheckpointError, match=r"(?s)weights='nowhere'.*transformer/ .*vae/ .*text_encoder/ "):
        find_weights("nowhere")


def test_configurations_of_another_model_are_refused(weights: Path, tmp_path: Path) -> None:
    config = json.loads((weights / "vae/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "scale": [1, 1, 1, 1]}))
    with pytest.raises(CheckpointError, match=r"scale=\[1, 1, 1, 1\], this model has \[3.85"):
        load_vae(tmp_path, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="precision='int8', allowed float32, bfloat16"):
        OPEN_SORA.load(replace(load_request(weights), precision="int8"))
    with pytest.raises(CheckpointError, match=r"holds no tokenizer"):
        replace(t5_text(weights), tokenizer_folder=weights / "vae")(["a cat"])


def test_tiny_weights_are_named_by_what_they_hold(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert find_family("open_sora") is OPEN_SORA
    digest = OPEN_SORA.weights_digest(str(weights))
    assert write_tiny(["open_sora", str(tmp_path / "again")]) == 0
    assert OPEN_SORA.weights_digest(str(tmp_path / "again")) == digest, "one seed, one model"
    assert write_tiny(["open_sora", str(tmp_path / "other"), "--seed", "1"]) == 0
    assert OPEN_SORA.weights_digest(str(tmp_path / "other")) != digest
    with pytest.raises(SystemExit):
        write_tiny(["open_sora", str(weights)])
    assert "is not empty; name a new folder" in capsys.readouterr().err


def test_plan_knows_every_site_of_the_model(weights: Path) -> None:
    model = OPEN_SORA.load(load_request(weights))
    assert model.transformer.sites == OPEN_SORA.sites
    assert model.transformer.choose_kernels is choice.plain
    model.use_kernels()
    assert model.transformer.choose_kernels is choice.fastest
    assert make_plan(OPEN_SORA.presets["pab246"], [500.0], OPEN_SORA.sites).sites == OPEN_SORA.sites
