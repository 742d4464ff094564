"""How the ranks of one clip split their work and exchange tensors."""
