"""How good rendered clips are: how alike two renderings are, what speaks of a broken clip, and how both are told."""
