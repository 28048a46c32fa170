"""The site lists every page, the API reference every public name, and links that leave docs/ lead to the repository."""

import importlib.util
import re
import tomllib
from importlib import import_module
from types import SimpleNamespace

import pytest
import yaml
from pages import ROOT

import llm_unlearn

pytestmark = pytest.mark.unit

DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "scripts" / "site_hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


class SiteLoader(yaml.SafeLoader):
    """YAML in which a Python object, as mkdocs takes one for a setting, is left out."""


SiteLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def pages_of(nav: list | dict | str) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def directives() -> dict[str, str]:
    """Dotted name → its options, of everything that the API pages show."""
    return {
        name: options
        for page in (DOCS / "api").glob("*.md")
        for name, options in re.findall(r"^::: (\S+)$((?:\n    .*)*)", page.read_text(encoding="utf-8"), flags=re.M)
    }


def test_every_page_is_in_the_navigation_once():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), SiteLoader)
    assert site["strict"] is True
    assert sorted(pages_of(site["nav"])) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_what_the_reference_shows_is_there():
    for name in directives():
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), name


@pytest.mark.parametrize("name", [name for name in llm_unlearn.__all__ if name != "__version__"])
def test_every_public_name_is_in_the_reference_with_a_docstring(name):
    shown = directives()
    value = getattr(llm_unlearn, name)
    module = getattr(value, "__module__", None)
    if module is None:  # a constant: named itself
        assert any(entry.endswith(f".{name}") for entry in shown)
        return
    parent = module.rpartition(".")[0]
    assert {module, f"{module}.{name}"} & set(shown) or "show_submodules: true" in shown.get(parent, ""), module
    assert value.__doc__, name


@pytest.mark.parametrize(
    ("page", "target", "becomes"),
    [
        ("concepts.md", "../recipes/README.md#defaults", "/blob/main/recipes/README.md#defaults"),
        ("api/README.md", "../../CHANGELOG.md", "/blob/main/CHANGELOG.md"),
        ("api/README.md", "../concepts.md", None),
        ("concepts.md", "running.md#sweeps", None),
    ],
)
def test_links_that_leave_the_docs_lead_to_the_repository(page, target, becomes):
    config = hooks.on_config({})
    found = hooks.on_page_markdown(
        f"See [this]({target}).", SimpleNamespace(file=SimpleNamespace(src_uri=page)), config, None
    )
    assert found == f"See [this]({PROJECT['urls']['Repository'] + becomes if becomes else target})."


def test_the_address_of_the_repository_is_written_once():
    repository = PROJECT["urls"]["Repository"]
    assert all(url.startswith(repository) for url in PROJECT["urls"].values())
    for path in (ROOT / "mkdocs.yml", ROOT / "CITATION.cff", *(ROOT / ".github").rglob("*.*"), *DOCS.rglob("*.md")):
        assert repository not in path.read_text(encoding="utf-8"), path
