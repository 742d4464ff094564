"""Pyramid Attention Broadcast and broadcast sequence parallelism for video diffusion transformers."""
