"""How the demo model was trained: its data, the two stages, and what checks them."""
