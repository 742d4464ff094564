"""Image autoencoders, and decoding in tiles."""
