"""Pyramid Attention Broadcast: the plan, the rules that make it, and the outputs that a clip keeps between steps."""
