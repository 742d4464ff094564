"""What `python -m pipeline bench` measures: our models and what users would pick instead, row by row, in one process."""
