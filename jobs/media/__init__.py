"""Frames to videos and back, pictures, and how alike two videos are."""
