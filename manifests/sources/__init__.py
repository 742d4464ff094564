"""Reading prompts from the files that people have: which files, how they are packed and written, and their rows."""
