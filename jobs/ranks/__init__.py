"""How the ranks of a job find each other, know that all are there, and exchange plain values."""
