"""Where the repository lies. Real data is reached through the fixture `real_data` alone (conftest.py)."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
