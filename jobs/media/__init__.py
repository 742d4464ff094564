"""Frames to videos and back, and pictures."""
