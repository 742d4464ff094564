"""The host never waits for the device inside the denoising loop: it would leave the device idle at every step."""

import pytest
import torch

from pab.parallel.mesh import NodeGroup
from tests.pab.loop_waits import WaitsForDeviceError, WatchedLoop
from tests.pab.noise_worlds import WORLDS
from tests.pab.noise_worlds import clip as noise_clip
from tests.pab.worlds import clip, render, tiny_model

CPU = torch.device("cpu")


def test_no_step_of_the_rectified_flow_model_waits_for_the_device():
    watched = WatchedLoop(tiny_model(), CPU)
    latents = render(watched, clip()).latents
    assert watched.steps == clip().num_steps
    assert torch.equal(latents, render(tiny_model(), clip()).latents)


@pytest.mark.parametrize("name", WORLDS)
def test_no_step_of_the_noise_models_waits_for_the_device(name):
    world = WORLDS[name]
    watched = WatchedLoop(world.model(), CPU)
    world.render(watched, noise_clip())
    assert watched.steps == len(world.plan(noise_clip()).timesteps)


@pytest.mark.parametrize(
    "read", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x.any()), lambda x: torch.equal(x, x)]
)
def test_a_step_that_reads_a_value_back_is_found(read):
    watched = WatchedLoop(tiny_model(), CPU)
    predict = watched.model.predict

    def reading(*args):
        read(args[0])
        return predict(*args)

    watched.model = ReadingModel(watched.model, reading)
    with pytest.raises(WaitsForDeviceError):
        render(watched, clip(num_steps=1))


class ReadingModel:
    def __init__(self, model, predict) -> None:
        self.model, self.predict = model, predict

    def __getattr__(self, name: str):
        return getattr(self.model, name)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
def test_no_step_waits_on_a_gpu():
    device = torch.device("cuda")
    model = tiny_model()
    model.transformer.to(device)
    group = NodeGroup(device=device)
    render(model, clip(), group=group)
    watched = WatchedLoop(model, device)
    render(watched, clip(), group=group)
    assert watched.steps == clip().num_steps
