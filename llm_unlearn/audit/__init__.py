"""Audit a checkpoint that no run of ours made: `llm-unlearn evaluate --model PATH_OR_ID --manifest poison.json`."""
