"""The run's folder in object storage."""
