"""Manifests of clips: reading, validating, digests and planning into shards."""
