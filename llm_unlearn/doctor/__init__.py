"""`llm-unlearn doctor`: what would go wrong with a recipe on this machine, found in seconds and before any weight is
loaded. machine.py looks at versions and devices, memory.py at whether the steps fit and what to change, tokens.py and
adapters.py at what is trained on and what trains; run.py puts the findings together.
"""
