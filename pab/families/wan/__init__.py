"""What the published Wan models do around their transformers: weights, noise levels, loading."""
