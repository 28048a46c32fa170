"""`python -m llm_unlearn` is the command line `llm-unlearn`."""

import sys

from llm_unlearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
