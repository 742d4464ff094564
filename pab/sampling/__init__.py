"""From noise to latents: the denoising loop, alone or with several clips in it, and the samplers."""
