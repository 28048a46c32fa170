"""Audits by the halves of a search: rows that chose a method judge none, and every other model is another look."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm_unlearn.audit.decisions import look_warnings
from llm_unlearn.audit.halves import judged_choices, note_choice

pytestmark = pytest.mark.unit


def test_a_model_that_the_search_did_not_judge_is_another_look(tmp_path):
    run, verdict = tmp_path / "run", SimpleNamespace(part="verdict")
    note_choice(run, "the one that passed")
    for number, folder in enumerate(("run/unlearned/npo", "one", "two", "copy of two")):
        (tmp_path / folder).mkdir(parents=True)
        save_file({"weight": np.full(2, min(number, 2))}, tmp_path / folder / "model.safetensors")
    assert look_warnings(verdict, run, str(run / "unlearned" / "npo")) == [] and len(judged_choices(run)) == 1
    (said,) = look_warnings(verdict, run, str(tmp_path / "one"))
    assert "have judged 2 choices" in said
    assert "have judged 3 choices" in look_warnings(verdict, run, str(tmp_path / "two"))[0]
    assert "have judged 3 choices" in look_warnings(verdict, run, str(tmp_path / "copy of two"))[0]  # the same model
    assert "have judged 3 choices" in look_warnings(verdict, run, str(run / "unlearned" / "npo"))[0]
    shutil.copytree(run / "unlearned" / "npo", tmp_path / "copy of npo")
    assert "have judged 3 choices" in look_warnings(verdict, run, str(tmp_path / "copy of npo"))[0]  # the chosen one
    assert "have judged 4 choices" in look_warnings(verdict, run, "org/of-the-hub")[0]


def test_rows_that_chose_the_method_judge_no_model(tmp_path):
    (said,) = look_warnings(SimpleNamespace(part="tuning"), tmp_path, "m")
    assert "chose the method" in said and not judged_choices(tmp_path)
    assert look_warnings(SimpleNamespace(part=None), tmp_path, "m") == [] and not judged_choices(tmp_path)
