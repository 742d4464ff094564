"""What jobs, calibrations and benchmarks say of themselves, as JSON and as pages."""
