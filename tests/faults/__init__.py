"""Random faults over real runs on real daemons, and the books of every run afterwards: `make faults`."""
