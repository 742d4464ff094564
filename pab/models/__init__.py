"""Transformers written here, with the published checkpoints' key names."""
