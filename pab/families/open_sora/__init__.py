"""What the published Open-Sora 1.2 pipeline does around its transformer: sizes, prompts, reference frames, loading."""
