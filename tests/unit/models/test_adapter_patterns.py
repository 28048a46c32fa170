"""A pattern that backtracks for ever is refused."""

import time

import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.models import adapter_patterns
from llm_unlearn.models.adapter_patterns import check_patterns

pytestmark = pytest.mark.unit

NAMES = ["model.layers.0.self_attn.q_proj", "a" * 60]


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "(a+)+b"},
        {"target_modules": ["q_proj"], "exclude_modules": "(a|aa)+b"},
        {"rank_pattern": {"^(a*)*b": 4}},
    ],
)
def test_a_pattern_without_an_end_is_refused(config, monkeypatch):
    monkeypatch.setattr(adapter_patterns, "LONGEST", 0.5)
    began = time.monotonic()
    with pytest.raises(InputError, match="adapter there: .*takes over"):
        check_patterns(config, NAMES, "there")
    assert time.monotonic() - began < 10


def test_what_is_no_pattern_is_refused_and_ordinary_ones_pass():
    with pytest.raises(InputError, match=r"adapter there: target_modules: '\(' is no regular expression"):
        check_patterns({"target_modules": "("}, NAMES, "there")
    ordinary = r".*\.(q|v)_proj"
    check_patterns({"target_modules": ordinary, "rank_pattern": {r"layers\.\d+": 2}, "r": 4}, NAMES, "there")
    check_patterns({"target_modules": "all-linear", "alpha_pattern": {}}, NAMES, "there")
