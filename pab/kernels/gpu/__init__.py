"""Triton kernels. Only imported where one is launched, so that a machine without triton can import everything else."""
