"""`python -m llm_unlearn` is the command line `llm-unlearn`."""

from llm_unlearn.cli import main
from llm_unlearn.processes import exit_with

if __name__ == "__main__":
    exit_with(main)
