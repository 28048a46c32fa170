"""A torchvision that is absent or cannot load leaves the language-model path as it is.

Each case runs in an interpreter of its own, with a `torchvision` of its own in front of the installed one.
"""

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

LANGUAGE = """
from llm_unlearn.runs.environment import calm_libraries
calm_libraries(quiet=True)
from transformers import Trainer
from llm_unlearn import GradDiffTrainer, load_recipe
import llm_unlearn.training.text_training
"""
PYTHON = """
import sys
import llm_unlearn
assert not {"torch", "torchvision", "transformers"} & set(sys.modules)  # importing it alone costs nothing
from llm_unlearn import GradDiffConfig, unlearn
from transformers import AutoProcessor, LlamaConfig, Trainer
"""
VISION = """
from llm_unlearn.errors import InputError
from llm_unlearn.vision.classifiers import ImageClassifierConfig, make_classifier
make_classifier(ImageClassifierConfig(num_labels=3), 0)  # the small CNN needs none
try:
    make_classifier(ImageClassifierConfig("cifar_resnet18", num_labels=3, channels=3), 0)
    print("RESNET")
except InputError as error:
    print("REFUSED", error)
"""
ABSENT = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == "torchvision":
            raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)
import importlib.util
find = importlib.util.find_spec
absent = lambda name: name.split(".")[0] == "torchvision"
importlib.util.find_spec = lambda name, package=None: None if absent(name) else find(name, package)
sys.meta_path.insert(0, Absent())
"""


def run(code: str, folder=None) -> str:
    prelude = f"import sys; sys.path.insert(0, {str(folder)!r})\n" if folder else ""
    done = subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fake(folder, body: str):
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(body)
    (folder / "torchvision-0.0.1.dist-info").mkdir()
    (folder / "torchvision-0.0.1.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.0.1\n")
    return folder


def test_absent():
    run(ABSENT + PYTHON)
    said = run(ABSENT + LANGUAGE + VISION)
    assert re.search(r"REFUSED .*'cifar_resnet18'.*not installed.*pip install 'llm_unlearn\[vision\]'", said)


@pytest.mark.parametrize(
    "body",
    [
        "raise OSError('libcudart.so.13: cannot open shared object file')",
        "raise RuntimeError('operator torchvision::nms does not exist')",  # and goes on failing once it is declared
        "import no_such_package_at_all",
    ],
    ids=["library", "operator", "package"],
)
def test_broken(body, tmp_path):
    folder = fake(tmp_path, body)
    run(PYTHON, folder)
    said = run(LANGUAGE + VISION, folder)
    assert re.search(r"REFUSED .*'cifar_resnet18'.*cannot be loaded \(", said)


def test_one_whose_operators_alone_are_missing_is_mended(tmp_path):
    body = """
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: None)
LOADED = True
"""
    code = "from llm_unlearn.vision import torchvision_guard as g\n"
    code += "print('MENDED', g.try_torchvision().LOADED, g.why_hidden())"
    said = run(code, fake(tmp_path, body))
    assert "MENDED True None" in said


def test_a_fault_of_the_fake_alone_would_stop_transformers(tmp_path):
    """The test above can fail: without the guard the same torchvision takes transformers with it."""
    folder = fake(tmp_path, "raise OSError('libcudart.so.13: cannot open shared object file')")
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\nfrom transformers import AutoProcessor, Trainer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "libcudart" in done.stderr
