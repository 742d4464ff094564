"""Frames of a clip that are given: references, masks, loops."""
