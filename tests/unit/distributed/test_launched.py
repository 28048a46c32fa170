"""How the tests launch: what native code crashes is run once more, what fails otherwise is not."""

import sys

import pytest
from launched import run_launched

# counts its runs in a file; says what the launcher says of a process that ended so, in all runs but the last
LAUNCHER = """
import sys
counter, exit_code, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(counter, "a+") as file:
    file.write("x")
    file.seek(0)
    runs = len(file.read())
if runs < last:
    sys.exit(f"Loading weights: 100%|####| 1/1\\nTraceback: it broke\\n  exitcode  : {exit_code} (pid: 1)")
"""


def words(tmp_path, exit_code: int, last: int) -> list[str]:
    return [sys.executable, "-c", LAUNCHER, str(tmp_path / "runs"), str(exit_code), str(last)]


@pytest.mark.parametrize("exit_code", [-6, -11])
def test_a_crash_is_run_again_with_a_warning(exit_code, tmp_path):
    with pytest.warns(UserWarning, match="crashed.*: Traceback: it broke"):
        run_launched(words(tmp_path, exit_code, last=2))
    assert (tmp_path / "runs").read_text() == "xx"


def test_a_second_crash_fails(tmp_path):
    with pytest.warns(UserWarning, match="crashed"), pytest.raises(AssertionError, match="Traceback: it broke"):
        run_launched(words(tmp_path, -6, last=3))
    assert (tmp_path / "runs").read_text() == "xx"


@pytest.mark.parametrize("exit_code", [1, -15, -9, -60])
def test_any_other_failure_is_not_run_again(exit_code, tmp_path):
    with pytest.raises(AssertionError, match="exit code 1:\nTraceback"):
        run_launched(words(tmp_path, exit_code, last=2))
    assert (tmp_path / "runs").read_text() == "x"
