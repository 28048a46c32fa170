"""What may import what, read from the source; and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llm_unlearn

pytestmark = pytest.mark.unit

PACKAGE = Path(llm_unlearn.__file__).parent
# From the top down. A module may import from its own layer and from those below it, never from one above.
LAYERS = (
    {
        "__init__",
        "__main__",
        "cli",
        "pipeline",
        "seed_run",
        "language_run",
        "vision_run",
        "plan",
        "methods",
        "pretraining",
        "publishing",
        "run_folder",
        "audit_stages",
        "audit",
        "merging",
        "launch",
        "memory",
        "doctor",
    },
    {
        "reporting",
        "evaluation",
        "trainers",
        "poisons",
        "data",
        "training",
        "fine_tuning",
        "vision",
        "environment",
        "analysis",
        "stress",
        "preemption",
    },
    {
        "tasks",
        "modeling",
        "compute",
        "checkpoints",
        "stages",
        "progress",
        "tracking",
        "parallel",
        "sweep",
        "recipe",
        "recipe_checks",
        "sections",
        "vision_sections",
        "strict",
        "errors",
        "torchvision_guard",
        "placement",
        "processes",
        "layout",
        "hub",
        "options",
    },
    {"losses", "metrics"},
)
BELOW_ALL = {"errors"}  # an exception class may be raised anywhere
NEVER = {  # part of the package → modules that it must not import, even inside a function
    "metrics": {"torch", "transformers", "datasets", "peft", "trl", "accelerate"},
    "reporting": {"torch", "transformers", "datasets", "peft", "trl", "accelerate"},
    "errors": {"torch", "transformers", "numpy"},
    "strict": {"torch", "transformers", "numpy"},
    "recipe": {"torch", "transformers", "numpy"},
    "losses": {"transformers", "numpy"},
    "layout": {"torch", "transformers", "numpy"},
}
SOURCES = sorted(p for p in PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The part of the package that a file belongs to: `trainers` for trainers/kl.py, `cli` for cli.py."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, except under `if TYPE_CHECKING:`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    typing_only = [node for node in branches if "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(inner) for node in typing_only for statement in node.body for inner in ast.walk(statement)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """Parts of the package that a file imports from."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("llm_unlearn.")}
    return names & {part(p) for p in SOURCES}


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def edges() -> set[tuple[str, str]]:
    return {(part(path), other) for path in SOURCES for other in ours(path) if other != part(path)}


def test_every_part_has_its_layer():
    assert {part(path) for path in SOURCES} <= set().union(*LAYERS)


def test_imports_run_one_way():
    upward = {(a, b) for a, b in edges() if b not in BELOW_ALL and layer(b) < layer(a)}
    assert not upward, f"imports that go up: {sorted(upward)}"


def test_the_walk_sees_imports_at_the_top_and_inside_functions():
    assert ("seed_run", "trainers") in edges()  # inside a function
    assert ("evaluation", "tasks") in edges()  # at the top
    assert "torch" not in imports(PACKAGE / "poisons" / "corrupt.py")
    assert ("modeling", "recipe") not in edges()  # for type checkers only


def test_trainers_and_evaluation_meet_in_a_checkpoint_only():
    assert not {("trainers", "evaluation"), ("evaluation", "trainers")} & edges()


def test_the_bottom_knows_nothing_of_the_rest():
    allowed = {
        "errors": set(),
        "strict": {"errors"},
        "recipe": {"errors", "strict", "sections", "vision_sections", "recipe_checks"},
        "sections": set(),
        "vision_sections": set(),
        "torchvision_guard": {"errors"},
        "recipe_checks": {"errors"},
        "losses": set(),
        "metrics": {"errors"},
        "compute": set(),
        "checkpoints": {"errors"},
        "progress": set(),
        "processes": {"layout"},
        "layout": {"errors", "strict"},
    }
    for name, parts in allowed.items():
        assert {b for a, b in edges() if a == name} <= parts, name


def test_the_core_never_imports_the_image_track():
    assert not {a for a, b in edges() if b == "vision"} - {"vision_run", "memory"}
    for path in SOURCES:
        if part(path) != "vision":
            assert "torchvision" not in {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("name", sorted(NEVER))
def test_what_a_part_must_never_import(name):
    for path in SOURCES:
        if part(path) == name:
            found = {n.split(".")[0] for n in imports(path)} & NEVER[name]
            assert not found, f"{path.relative_to(PACKAGE)} imports {found}"


HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "pandas", "matplotlib", "numpy", "scipy")


def loaded_by(code: str) -> set[str]:
    """Heavy packages that are loaded once a fresh interpreter has run `code`."""
    program = f"import sys\n{code}\nprint('LOADED', *[m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(result.stdout.split("LOADED")[1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import llm_unlearn; assert dir(llm_unlearn)",
        "import llm_unlearn.cli; llm_unlearn.cli.parser().format_help()",
        "from llm_unlearn.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit as e: assert e.code == 0",
        "from llm_unlearn.cli import main\nassert main(['run', 'no-such-recipe.yaml']) == 2",
    ],
    ids=["import", "parser", "help", "bad recipe"],
)
def test_what_should_be_quick_loads_nothing_heavy(code):
    assert loaded_by(code) == set()


def test_reporting_and_metrics_load_no_torch():
    assert not loaded_by("import llm_unlearn.reporting, llm_unlearn.metrics") & {"torch", "transformers", "datasets"}


def test_the_check_of_what_is_loaded_can_fail():
    assert "numpy" in loaded_by("import numpy")


@pytest.mark.parametrize("name", llm_unlearn.__all__)
def test_every_public_name_resolves(name):
    assert getattr(llm_unlearn, name) is not None


def test_the_classes_of_every_method_are_public():
    from llm_unlearn.trainers import METHODS

    for pair in METHODS.values():
        for cls in pair:
            assert getattr(llm_unlearn, cls.__name__) is cls


def test_an_unknown_name_is_an_attribute_error_and_dir_is_the_public_names():
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        llm_unlearn.Trainer  # noqa: B018
    assert set(dir(llm_unlearn)) == set(llm_unlearn.__all__)
