"""Where weights are, loading them, and what names them."""
