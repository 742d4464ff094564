"""From noise to latents: the denoising loop of one clip or of a batch, and the samplers."""
