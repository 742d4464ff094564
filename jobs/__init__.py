"""What runs inside an allocation: one node group renders the clips of one shard."""
