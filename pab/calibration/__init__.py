"""Measures on prompts how sites change and what reuse does, and searches a static plan. `jobs/calibrate.py` drives it."""
