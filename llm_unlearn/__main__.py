"""`python -m llm_unlearn` is the command line `llm-unlearn`."""

from llm_unlearn.cli.main import main
from llm_unlearn.distributed.processes import exit_with

if __name__ == "__main__":
    exit_with(main)
