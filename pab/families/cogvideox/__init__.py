"""What the published CogVideoX text-to-video models do around their transformers: weights, noise levels, loading."""
