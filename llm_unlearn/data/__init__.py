"""From a source to tokens: readers, splits, the synthetic default, prompts, encoding and collators."""
