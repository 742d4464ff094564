"""The command line: where manifests, jobs and clusters meet."""
