"""Measures on prompts how sites change and what reuse does, and searches a static plan. Driven by `jobs/calibration/`."""
