"""What the published CogVideoX models do around their transformers: weights, noise levels, loading."""
