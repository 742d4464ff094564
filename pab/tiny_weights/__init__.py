"""The command `python -m pab.tiny_weights`."""
