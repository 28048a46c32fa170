"""What may import what, read from the source; and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llm_unlearn

pytestmark = pytest.mark.unit

PACKAGE = Path(llm_unlearn.__file__).parent
# From the top down (docs/README.md): a folder or module may import what stands below it, and never what stands above.
FLOORS = (
    "cli",
    "doctor",
    "hub",
    "runs",
    "audit",
    "trainers",
    "vision",
    "training",
    "evaluation",
    "poisons",
    "data",
    "tasks",
    "models",
    "reporting",
    "distributed",
    "metrics",
    "config",
    "losses",
    "files",
    "errors",
)
ROOT_MODULES = {"__init__", "__main__"}
# `import llm_unlearn` itself is for the version, and for `trainer.push_to_hub()`, which Hugging Face's Trainer has as a
# method: the trainer asks the public, lazily resolved `push_trainer`, and so knows of no module of hub/.
ASKS_THE_PACKAGE = {"trainers/base.py", "cli/arguments.py", "hub/unaudited_card.py"}
HEAVY_LIBRARIES = {"torch", "transformers", "datasets", "peft", "trl", "accelerate"}
NEVER = {  # part of the package → libraries that it must not import, even inside a function
    "metrics": HEAVY_LIBRARIES,
    "reporting": HEAVY_LIBRARIES,
    "config": HEAVY_LIBRARIES | {"numpy"},
    "files": HEAVY_LIBRARIES | {"numpy"},
    "errors": HEAVY_LIBRARIES | {"numpy"},
    "losses": {"transformers", "numpy"},
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The folder or loose module that a file belongs to: `trainers` for trainers/kl.py, `losses` for losses.py."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def module(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in SOURCES}


def imports(path: Path) -> set[str]:
    """Dotted names of modules that a file imports anywhere: inside functions and for type checkers too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= inner or {node.module}
    return names


def edges() -> set[tuple[str, str]]:
    """(part, part that it imports)."""
    ours = {
        (part(path), name.split(".")[1])
        for path in SOURCES
        for name in imports(path)
        if name.count(".") and name.startswith("llm_unlearn.")
    }
    return {(a, b) for a, b in ours if a != b and a not in ROOT_MODULES}


def test_every_part_has_its_floor():
    assert {part(path) for path in SOURCES} == {*FLOORS, *ROOT_MODULES}


def test_imports_run_one_way():
    upward = {(a, b) for a, b in edges() if FLOORS.index(b) < FLOORS.index(a)}
    assert not upward, f"imports that go up: {sorted(upward)}"


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The groups of nodes that reach each other; `graph` has the nodes that each one points at."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {node: reached(node) for node in graph}
    return {frozenset(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]}


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imports(path) & MODULES.keys() for name, path in MODULES.items() if name != "llm_unlearn"}
    graph = {name: ours - {"llm_unlearn"} for name, ours in graph.items()}
    ours = {frozenset(name.removeprefix("llm_unlearn.") for name in group) for group in circles(graph)}
    assert not ours


def test_a_circle_would_be_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert circles(graph) == {frozenset("abc")}


def test_the_walk_sees_imports_of_every_kind():
    assert ("runs", "trainers") in edges()  # inside a function
    assert ("evaluation", "tasks") in edges()  # at the top
    assert ("models", "config") in edges()  # for type checkers only
    assert "torch" not in imports(PACKAGE / "poisons" / "corrupt.py")


def test_only_these_ask_the_package_itself():
    asking = {str(p.relative_to(PACKAGE)) for p in SOURCES if "llm_unlearn" in imports(p)}
    assert asking <= ASKS_THE_PACKAGE


def test_no_two_modules_have_one_name():
    names = [path.stem for path in SOURCES if path.stem != "__init__"]
    folders = {path.parent.name for path in SOURCES if path.stem == "__init__"}
    assert not {name for name in names if names.count(name) > 1 or name in folders}


def test_the_image_track_alone_imports_torchvision():
    for path in SOURCES:
        if part(path) != "vision":
            assert "torchvision" not in {name.split(".")[0] for name in imports(path)}, path


def test_importing_the_package_leaves_the_import_system_alone():
    program = "import sys; before = list(sys.meta_path); import llm_unlearn; assert sys.meta_path == before"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("name", sorted(NEVER))
def test_what_a_part_must_never_import(name):
    for path in SOURCES:
        if part(path) == name:
            heavy = {n.split(".")[0] for n in imports(path)} & NEVER[name]
            assert not heavy, f"{path.relative_to(PACKAGE)} imports {heavy}"


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
        "import llm_unlearn.cli.main; llm_unlearn.cli.main.parser().format_help()",
        "from llm_unlearn.cli.main import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit as e: assert not e.code",
        "from llm_unlearn.cli.main import main\nassert main(['run', 'no-such-recipe.yaml']) == 2",
    ],
    ids=["import", "parser", "help", "bad recipe"],
)
def test_what_should_be_quick_loads_nothing_heavy(code):
    assert loaded_by(code) == set()


def test_reporting_and_metrics_load_no_torch():
    assert not loaded_by("import llm_unlearn.reporting, llm_unlearn.metrics") & {"torch", "transformers", "datasets"}


def test_pydantic_is_loaded_for_a_recipe_alone():
    code = "import sys, llm_unlearn.cli.main; llm_unlearn.cli.main.parser().format_help(); {} 'pydantic' in sys.modules"
    loaded_by(code.format("assert not"))
    loaded_by(code.format("llm_unlearn.load_recipe; assert"))


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
