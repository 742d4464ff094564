"""What a run is, how far it is, and what drives it."""
