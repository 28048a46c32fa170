"""Judge any checkpoint against a manifest: `llm-unlearn audit --model PATH_OR_ID --manifest poison.json`."""
