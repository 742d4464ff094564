"""What the published HunyuanVideo models do around their transformers: weights, noise levels, prompts, loading."""
