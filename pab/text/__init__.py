"""Text encoders and what is done to a prompt before them."""
