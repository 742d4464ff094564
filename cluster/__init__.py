"""How jobs get machines (submitit: SLURM or this machine) and how progress is shown (Dask)."""
