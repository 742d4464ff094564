"""A private real SLURM and a private real S3 server, each in one throw-away folder on loopback."""
