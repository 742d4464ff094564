"""What the published LTX-Video models do around their transformer: weights, noise levels, loading."""
