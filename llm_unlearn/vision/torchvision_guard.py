"""A torchvision that cannot load must not take the language-model path with it.

transformers imports torchvision wherever it finds one. Beside another build of torch (PyPI's CUDA wheel of torchvision
and a CPU torch, say) that import fails, and transformers fails with it. So the command line and this track try
torchvision before they import transformers. Where only its compiled operators are missing they are declared, which is
enough for models, data sets and transforms. Where it fails in any other way it is hidden, as if it were not installed.
"""

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

from llm_unlearn.errors import InputError

# what torchvision registers fakes for at import, though its compiled library, which defines them, did not load
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_failure: BaseException | None = None  # why the installed torchvision is hidden
_libraries: list[object] = []  # declarations live as long as these


def try_torchvision() -> ModuleType | None:
    """torchvision, mended if need be; None where it is absent or cannot be loaded (it is then hidden)."""
    global _failure
    if importlib.util.find_spec("torchvision") is None:  # absent, or hidden before
        return None
    try:
        try:
            return _import()
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            _forget()
            _declare()
            return _import()
    except Exception as error:
        _failure = error
        _forget()
        sys.modules["torchvision"] = None  # what the import system and `find_spec` take for absent
        return None


def require_torchvision(what: str) -> ModuleType:
    """torchvision. Raises InputError naming `what` needs it, where it is absent or cannot be loaded."""
    module = try_torchvision()
    if module is None:
        reason = why_hidden()
        found = f"is installed but cannot be loaded ({reason})" if reason else "is not installed"
        raise InputError(
            f"{what} needs torchvision, which {found}: pip install 'llm_unlearn[vision]', with a build "
            "that fits your torch"
        )
    return module


def why_hidden() -> str | None:
    """Why an installed torchvision is not used, or None."""
    return None if _failure is None else f"{type(_failure).__name__}: {_failure}"


def _import() -> ModuleType:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        return importlib.import_module("torchvision")


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in OPERATORS:
        library.define(schema)
    _libraries.append(library)


def _forget() -> None:
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
