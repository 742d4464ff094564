from pathlib import Path

import pytest
import torch

from pab.families.demo.scene import DIRECTIONS
from pab.families.demo.training.feed import Batch, training_buckets
from pab.families.demo.training.steps import StepInputs
from pab.families.demo.weights import load_demo
from pab.families.demo_wan.config import FLOW_SHIFT, demo_wan_tokens
from pab.families.demo_wan.training.train import main
from pab.families.demo_wan.training.velocity import WanVelocity, initialise
from pab.families.demo_wan.transformer import (
    build_transformer,
    load_transformer,
    save_transformer,
    transformer_config,
)
from pab.sampling.rectified_flow import add_noise
from pab.weights.checkpoint import CheckpointError


def small_transformer():
    torch.manual_seed(0)
    transformer = build_transformer(transformer_config(small=True))
    initialise(transformer)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    return transformer


def test_training_runs_the_library_s_forward_pass():
    transformer, text_encoder = small_transformer(), load_demo().text_encoder
    latents = torch.randn(2, 8, 4, 8, 12)
    ids_BL = text_encoder.tokenizer.batch(["a red circle", "blue star moving left"])
    batch = Batch(data=latents, ids_BL=ids_BL, direction_B=torch.tensor([0, DIRECTIONS.index("left")]))
    inputs = StepInputs.empty(batch)
    inputs.fill(batch, 1)
    inputs.null_B.copy_(torch.tensor([False, True]))
    model = WanVelocity(transformer, text_encoder)
    with torch.no_grad():
        noisy = add_noise(latents, inputs.noise, inputs.timestep_B[:, None, None, None, None])
        text = text_encoder.encode(["a red circle", ""]).y[:, 0]
        expected = transformer(noisy, inputs.timestep_B.floor(), text, return_dict=False)[0]
        velocity = model(inputs, *model.constants(training_buckets(small=True)[1], latents))
    assert velocity.abs().max() > 0.1
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)


def test_the_shipped_size_fits_sixteen_megabytes_as_float16():
    assert sum(2 * value.numel() for value in build_transformer(transformer_config()).state_dict().values()) < 15.9e6


def test_the_transformer_survives_its_file_and_another_file_is_named(tmp_path: Path):
    transformer = small_transformer()
    save_transformer(transformer, tmp_path / "demo_wan.safetensors")
    loaded = load_transformer(tmp_path / "demo_wan.safetensors", dtype=torch.bfloat16)
    assert loaded.proj_out.weight.dtype == torch.bfloat16
    assert loaded.blocks[0].scale_shift_table.dtype == torch.float32
    for key, value in load_transformer(tmp_path / "demo_wan.safetensors").state_dict().items():
        torch.testing.assert_close(value, transformer.state_dict()[key].half().float())
    with pytest.raises(CheckpointError, match=r"demo\.safetensors has format 'pab-demo-3', demo_wan's file has"):
        load_transformer(Path("pab/families/demo/demo.safetensors"))


def test_tokens_are_counted_as_the_transformer_patches():
    assert demo_wan_tokens(16, 64, 64) == 512
    assert FLOW_SHIFT == 3.0


def test_training_stops_and_goes_on_from_a_rounded_checkpoint(tmp_path: Path):
    common = ["--out", str(tmp_path), "--small", "--device", "cpu", "--check-prompts", "1", "--resume"]
    steps = []
    for _ in range(2):
        assert main([*common, "--minutes", "60", "--stop-after-minutes", "1e-6"]) == 0
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        steps.append(state["steps"][0])
    assert 0 < steps[0] < steps[1]
    assert {value.dtype for value in state["transformer"].values()} == {torch.float16}
    assert main([*common, "--minutes", "1e-6"]) == 0, "its time is over: checked and written"
    assert load_transformer(tmp_path / "demo_wan.safetensors").config.num_layers == 2
