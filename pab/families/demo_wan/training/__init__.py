"""How demo_wan's transformer is trained and checked."""
