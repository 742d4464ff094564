"""How passes are run: compiled or not, with which attention, and where compiled kernels lie."""
