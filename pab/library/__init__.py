"""Transformers and VAEs of the diffusers library: sites, sequence parallelism, tiles."""
