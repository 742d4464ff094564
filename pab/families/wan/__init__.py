"""What the published Wan text-to-video models do around their transformers: weights, noise levels, loading."""
