"""The demo_wan family: a small trained model of today's architecture, the library's own Wan transformer, and its training."""
