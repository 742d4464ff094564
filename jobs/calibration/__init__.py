"""Finds a static plan for a family on a user's prompts."""
