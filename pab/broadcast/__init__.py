"""Pyramid Attention Broadcast: the plan, the rules that make it, and what a clip keeps between steps."""
