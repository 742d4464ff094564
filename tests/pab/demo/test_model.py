from pathlib import Path

import pytest
import torch

from pab.families.demo.autoencoder import Autoencoder, AutoencoderConfig
from pab.families.demo.frame_position import frame_positions, with_frame_positions
from pab.families.demo.scene import DIRECTIONS
from pab.families.demo.training.feed import UNSTATED, Batch, training_buckets
from pab.families.demo.training.generator import ClipSize
from pab.families.demo.training.sample import SampleSettings, render_prompts
from pab.families.demo.training.steps import StepInputs
from pab.families.demo.training.train import main
from pab.families.demo.training.train_transformer import VelocityModel
from pab.families.demo.weights import build_parts, demo_config, load_demo, save_demo
from pab.families.open_sora.stdit3 import ClipShape
from pab.sampling.rectified_flow import add_noise

TINY = AutoencoderConfig(encoder_width=16, encoder_blocks=1, decoder_width=16, decoder_blocks=1)


@pytest.mark.parametrize(("num_frames", "height", "width"), [(8, 32, 32), (2, 4, 8), (10, 36, 52)])
def test_latents_have_the_promised_shape_and_decode_to_the_clip_s(num_frames: int, height: int, width: int):
    autoencoder = Autoencoder(TINY)
    clip = torch.rand(2, 3, num_frames, height, width) * 2 - 1
    latents = autoencoder.encode(clip)
    assert latents.shape == (2, *autoencoder.latent_shape(num_frames, height, width))
    assert autoencoder.decode(latents).shape == clip.shape


def test_sizes_that_do_not_divide_are_refused_by_name():
    with pytest.raises(ValueError, match=r"width=66, the demo autoencoder needs a positive multiple of 4"):
        Autoencoder(TINY).latent_shape(16, 64, 66)
    with pytest.raises(ValueError, match=r"num_frames=7, .* multiple of 2"):
        Autoencoder(TINY).encode(torch.zeros(1, 3, 7, 32, 32))


def test_a_latent_depends_only_on_what_is_near():
    torch.manual_seed(0)
    autoencoder = Autoencoder(TINY)
    torch.nn.init.normal_(autoencoder.encoder[1].time.weight, std=0.1)
    clip = torch.zeros(1, 3, 32, 64, 64)
    other = clip.clone()
    other[:, :, 28:, 56:, 56:] = 1.0
    change = (autoencoder.encode(other) - autoencoder.encode(clip)).abs()
    assert change[:, :, -1, -1, -1].min() > 0
    assert change[:, :, :8].max() == 0
    assert change[:, :, :, :8].max() == 0


def test_training_runs_the_very_transformer_that_renders():
    torch.manual_seed(0)
    parts = build_parts(demo_config(small=True))
    model = VelocityModel(parts)
    bucket = training_buckets(small=True)[1]
    latents = torch.randn(2, 8, 4, 8, 12)
    ids_BL = parts.text_encoder.tokenizer.batch(["a red circle", "blue star moving left"])
    batch = Batch(data=latents, ids_BL=ids_BL, direction_B=torch.tensor([UNSTATED, DIRECTIONS.index("left")]))
    inputs = StepInputs.empty(batch)
    inputs.fill(batch, 1)
    inputs.null_B.copy_(torch.tensor([False, True]))
    with torch.no_grad():
        y_B1LC = parts.text_encoder(ids_BL)
        y_B1LC[1, 0] = parts.transformer.y_embedder.y_embedding
        noisy = add_noise(inputs.data, inputs.noise, inputs.timestep_B[:, None, None, None, None])
        clip = ClipShape(height=32, width=48, fps=inputs.fps_1, num_latent_frames=4)
        frames_CT = frame_positions(4)
        given = with_frame_positions(noisy, frames_CT)
        expected = parts.transformer(given, inputs.timestep_B, y_B1LC, clip=clip)[:, :8]
        velocity, _ = model(inputs, model.positions(bucket, latents), frames_CT)
        torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)


def test_frame_positions_tell_first_from_last_and_are_cut_like_frames():
    positions = frame_positions(5)
    assert positions[0].tolist() == [-4.0, -2.0, 0.0, 2.0, 4.0]
    assert positions[1].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert frame_positions(1).tolist() == [[0.0], [0.0]]
    given = with_frame_positions(torch.zeros(2, 8, 5, 3, 4), positions)
    assert given.shape == (2, 10, 5, 3, 4)
    assert torch.equal(given[1, 8:, :, 2, 3], positions)


def test_the_shipped_size_fits_sixteen_megabytes_as_float16():
    parts = build_parts(demo_config())
    modules = (parts.transformer, parts.autoencoder, parts.text_encoder)
    assert sum(2 * tensor.numel() for module in modules for tensor in module.state_dict().values()) < 16e6


def test_weights_survive_the_file(tmp_path: Path):
    parts = build_parts(demo_config(small=True))
    parts.autoencoder.latents_std.fill_(2.0)
    save_demo(parts, tmp_path / "demo.safetensors")
    loaded = load_demo(tmp_path / "demo.safetensors")
    assert loaded.vocabulary == parts.vocabulary
    assert loaded.transformer.config == parts.transformer.config
    for key, value in parts.transformer.state_dict().items():
        torch.testing.assert_close(loaded.transformer.state_dict()[key], value.half().float())
    assert loaded.autoencoder.latents_std.tolist() == [2.0] * 8


def test_missing_and_foreign_weights_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no demo weights at .*absent\.safetensors"):
        load_demo(tmp_path / "absent.safetensors")


def test_equal_seeds_render_equal_clips():
    parts = build_parts(demo_config(small=True))
    settings = SampleSettings(size=ClipSize(num_frames=8, height=32, width=48), num_steps=2)
    first = render_prompts(parts, ["a red circle"], seed=1, settings=settings)
    assert first.shape == (1, 3, 8, 32, 48)
    assert torch.equal(first, render_prompts(parts, ["a red circle"], seed=1, settings=settings))
    assert not torch.equal(first, render_prompts(parts, ["a red circle"], seed=2, settings=settings))


def test_training_stops_and_goes_on_and_writes_the_weights(tmp_path: Path):
    common = ["--out", str(tmp_path), "--minutes", "0.08", "--small", "--device", "cpu", "--check-prompts", "1"]
    assert main([*common, "--stop-after-minutes", "0.03"]) == 0
    with pytest.raises(FileExistsError, match="add --resume to go on"):
        main(common)
    steps = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["steps"]
    assert main([*common, "--resume"]) == 0
    later = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert later["steps"][1] > steps[1]
    assert later["elapsed_s"] >= 4.8
    assert load_demo(tmp_path / "demo.safetensors").transformer.config == demo_config(small=True).transformer
