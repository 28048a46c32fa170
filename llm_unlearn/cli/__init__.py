"""The command line: `llm-unlearn COMMAND`."""
