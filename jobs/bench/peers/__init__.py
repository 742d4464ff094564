"""Peers beside us: pipelines of published sizes with random weights, and methods that leave out work on trained weights."""
