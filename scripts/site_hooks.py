"""What mkdocs.yml cannot say: the repository's address, and where links that leave docs/ go on the site."""

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_config(config: Any) -> Any:
    """Take the repository's address from pyproject.toml, the one place where it is written."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config["repo_url"] = project["urls"]["Repository"]
    config["repo_name"] = project["name"]
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Send `../recipes/README.md` and its like, which work in a clone and on GitHub, to the repository."""
    folder = posixpath.dirname(page.file.src_uri)

    def address(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        return f"]({config['repo_url']}/blob/main/{target[3:]})" if target.startswith("../") else link[0]

    return re.sub(r"\]\((\.\./[^)\s]+)\)", address, markdown)
