"""The noise levels of HunyuanVideo 1.5, in plain numbers, so that a clip is planned before anything is loaded."""

from __future__ import annotations

from pab.library.even_levels import NUM_TRAIN_TIMESTEPS, even_levels, moved_timesteps

__all__ = ["NUM_TRAIN_TIMESTEPS", "even_levels", "moved_timesteps"]
