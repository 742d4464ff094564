"""Layers and blocks that several transformers share."""
