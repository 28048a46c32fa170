"""A deprecated name warns where it is used."""

import pytest

from llm_unlearn.errors import warn_deprecated

pytestmark = pytest.mark.unit


def old_name() -> int:
    warn_deprecated("old_name", "new_name", "0.3.0")
    return 1


def test_the_warning_names_both_and_points_at_the_caller():
    with pytest.warns(FutureWarning) as caught:
        assert old_name() == 1
    (warning,) = caught
    assert all(word in str(warning.message) for word in ("old_name", "new_name", "0.3.0"))
    assert warning.filename == __file__
