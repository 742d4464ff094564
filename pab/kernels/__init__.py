"""Fused GPU operations, each beside a plain torch twin that computes the same. `gpu/` holds the Triton code."""
