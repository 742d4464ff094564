"""What the published HunyuanVideo 1.5 models do around their transformers: weights, noise levels, prompts, loading."""
