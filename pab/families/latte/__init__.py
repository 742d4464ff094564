"""What the published Latte-1 pipeline does around its transformer: loading, and decoding by an image VAE."""
