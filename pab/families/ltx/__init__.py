"""What the published LTX-Video text-to-video models do around their transformer: weights, noise levels, loading."""
