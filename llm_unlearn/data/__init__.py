"""Where examples come from: sources, splits, the synthetic default, prompts, encoding and collators."""
