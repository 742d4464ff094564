"""What the published LTX-2 does around its transformer: weights, noise levels, text, sound, loading."""
