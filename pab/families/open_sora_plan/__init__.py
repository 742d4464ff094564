"""What the published Open-Sora-Plan pipelines do around their transformers: loading, and decoding by the causal VAE."""
