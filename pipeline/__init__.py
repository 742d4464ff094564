"""The command line: the only place that imports all of manifests, jobs and cluster."""
