"""What a run will take: seconds, memory, meshes, shards."""
