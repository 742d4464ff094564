"""The samplers: timesteps known without torch, steps that find the data when the predicted noise is right."""

import pytest
import torch

from pab.sampling.samplers import (
    DDIM,
    PNDM,
    EulerAncestral,
    ddim_timesteps,
    euler_ancestral_timesteps,
    pndm_timesteps,
    signal_levels,
)

STEPS = (4, 7, 50, 100, 150, 999)


def test_timesteps_of_the_published_schedules():
    assert ddim_timesteps(50)[:3] == (980.0, 960.0, 940.0)
    assert ddim_timesteps(50)[-1] == 0.0
    assert pndm_timesteps(150)[:14] == (894, 891, 891, 888, 888, 885, 885, 882, 882, 879, 879, 876, 876, 870)
    assert len(pndm_timesteps(150)) == 159
    assert euler_ancestral_timesteps(100)[:2] == (999.0, 988.9091186523438)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the library's own
@pytest.mark.parametrize("num_steps", STEPS)
def test_timesteps_and_noise_levels_are_those_of_the_diffusers_library(num_steps):
    import diffusers

    for theirs, ours in ((diffusers.PNDMScheduler(), pndm_timesteps), (diffusers.DDIMScheduler(), ddim_timesteps)):
        theirs.set_timesteps(num_steps)
        assert ours(num_steps) == tuple(theirs.timesteps.tolist())
        assert torch.tensor(signal_levels()).allclose(theirs.alphas_cumprod, rtol=3e-7, atol=0)
    euler = diffusers.EulerAncestralDiscreteScheduler()
    euler.set_timesteps(num_steps)
    assert euler_ancestral_timesteps(num_steps) == tuple(euler.timesteps.tolist())
    sampler = EulerAncestral(num_steps=num_steps, noise=torch.zeros)
    assert torch.tensor(sampler.sigmas).allclose(euler.sigmas, rtol=3e-7, atol=0)
    assert sampler.init_noise_sigma == euler.init_noise_sigma.item()


def run_with_right_noise(sampler, data: torch.Tensor, levels) -> torch.Tensor:
    """Samples with a model that knows the data: `levels(step)` gives the shares of data and noise in its input."""
    torch.manual_seed(0)
    latents = torch.randn_like(data) * sampler.init_noise_sigma
    for step in range(len(sampler.timesteps)):
        model_input = sampler.model_input(latents, step)
        share_data, share_noise = levels(step)
        noise = (model_input - share_data * data) / share_noise
        latents = sampler.advance(latents, model_input, noise, step)
    return latents


@pytest.mark.parametrize("num_steps", STEPS[1:4])
def test_right_noise_leads_to_the_data(num_steps):
    torch.manual_seed(1)
    data = torch.randn(2, 3, 4, dtype=torch.float64)

    def shares(sampler):
        signal = [signal_levels()[int(timestep)] for timestep in sampler.timesteps]
        return lambda step: (signal[step] ** 0.5, (1 - signal[step]) ** 0.5)

    ddim = DDIM(num_steps=num_steps)
    assert (run_with_right_noise(ddim, data, shares(ddim)) - data).abs().max() < 1e-9
    pndm = PNDM(num_steps=num_steps)
    # Its last level keeps the noise of training level 0.
    assert (run_with_right_noise(pndm, data, shares(pndm)) - data).abs().max() < 0.06
    euler = EulerAncestral(num_steps=num_steps, noise=lambda _: torch.randn(2, 3, 4, dtype=torch.float64))
    scale = [(sigma**2 + 1) ** 0.5 for sigma in euler.sigmas]
    found = run_with_right_noise(euler, data, lambda step: (1 / scale[step], euler.sigmas[step] / scale[step]))
    assert (found - data).abs().max() < 1e-9


def test_step_counts_that_cannot_be_walked_are_refused():
    with pytest.raises(ValueError, match="num_steps=3, PNDM needs 4 or more"):
        pndm_timesteps(3)
    with pytest.raises(ValueError, match="num_steps=1001, allowed 1 to 1000"):
        ddim_timesteps(1001)
