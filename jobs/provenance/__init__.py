"""C2PA manifests in videos: what they say, who signs them, and reading them back. Empty, so that no library is loaded."""
