"""Keep a broken torchvision from breaking the language-model path.

transformers imports any torchvision that it finds. Beside another build of torch (say, PyPI's CUDA wheel of torchvision
and a CPU torch) that import fails, and transformers fails with it. So the command line, the public names and this track
try torchvision before transformers. If only its compiled operators are missing, they are declared, which is enough for
models, data sets and transforms. If it fails in any other way, it is hidden, as if it were not installed.
"""

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

from llm_unlearn.errors import InputError

# the operators for which torchvision registers fakes on import, even if the library that defines them did not load
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_failure: BaseException | None = None  # why the installed torchvision is hidden
_libraries: list[object] = []  # declarations live as long as these objects


def try_torchvision() -> ModuleType | None:
    """torchvision, with its operators declared if they are missing; None if it is absent, or broken and now hidden."""
    global _failure  # noqa: PLW0603  # whether torchvision loads is a fact of the process
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
        # the import system and `find_spec` take None for absent
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # typeshed lacks this documented use
        return None


def require_torchvision(what: str) -> ModuleType:
    """torchvision, or InputError that says `what` needs it."""
    module = try_torchvision()
    if module is None:
        reason = why_hidden()
        problem = f"is installed but cannot be loaded ({reason})" if reason else "is not installed"
        raise InputError(
            f"{what} needs torchvision, which {problem}: pip install 'llm_unlearn[vision]', with a build "
            "that fits your torch"
        )
    return module


def why_hidden() -> str | None:
    """Why an installed torchvision is not used, or None."""
    return None if _failure is None else f"{type(_failure).__name__}: {_failure}"


def _import() -> ModuleType:
    """Import torchvision without its warning about image files, which we do not read with it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        return importlib.import_module("torchvision")


def _declare() -> None:
    """Declare the compiled operators, without an implementation."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in OPERATORS:
        library.define(schema)
    _libraries.append(library)


def _forget() -> None:
    """Remove a half-imported torchvision."""
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
