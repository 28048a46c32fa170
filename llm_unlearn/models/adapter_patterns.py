"""Whether the patterns of a foreign adapter end: a regular expression can backtrack for ever, and nothing stops it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from llm_unlearn.errors import InputError

LONGEST = 10  # seconds
FIELDS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")  # of a peft config
# as peft matches them: the whole name of a module, or its end
TRY = r"""
import json, re, sys
pattern, names = json.load(sys.stdin)
for name in names:
    re.fullmatch(pattern, name), re.match(rf"(.*\.)?({pattern})$", name)
"""


def check_patterns(config: dict[str, Any], modules: Iterable[str], where: str) -> None:
    """Match each pattern of an adapter's config against the names of a base's modules, in a process that can be ended.

    Args:
        config: what its adapter_config.json holds.
        modules: the names.
        where: the adapter, for error messages.

    Raises:
        InputError: a pattern takes longer than a few seconds, or is none.
    """
    names = list(modules)
    for field in FIELDS:
        value = config.get(field)
        patterns = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
        for pattern in patterns:
            if re.fullmatch(r"[\w.-]*", pattern):
                continue
            try:
                subprocess.run(
                    [sys.executable, "-I", "-c", TRY],
                    input=json.dumps([pattern, names]),
                    text=True,
                    capture_output=True,
                    timeout=LONGEST,
                    check=True,
                )
            except subprocess.TimeoutExpired:
                what = f"takes over {LONGEST} s to match the names of the base's modules; write a simpler one"
            except subprocess.CalledProcessError:
                what = "is no regular expression"
            else:
                continue
            raise InputError(f"adapter {where}: {field}: {pattern[:100]!r} {what}")
