"""`llm-unlearn doctor`: what would go wrong with a recipe on this machine, found before any weight is loaded.

machine_findings.py looks at versions and devices, memory_findings.py at whether the steps fit and what to change,
token_findings.py and adapter_findings.py at what is trained on and what trains; diagnose.py puts the findings together.
"""
