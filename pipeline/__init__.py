"""The command line: the only place where manifests, jobs and clusters meet."""
