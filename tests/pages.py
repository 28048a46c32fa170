"""The pages of the documentation and what stands in them: links, headings, blocks of code, commands."""

import re
import shlex
import textwrap

from paths import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", flags=re.S | re.M)


def languages(page: str) -> set[str]:
    """The languages of a page's blocks of code."""
    return {found[2] for found in _BLOCK.finditer(PAGES[page])}


def blocks(page: str, language: str) -> list[str]:
    """A page's blocks of code in a language."""
    return [textwrap.dedent(found[3]) for found in _BLOCK.finditer(PAGES[page]) if found[2] == language]


def commands(page: str) -> list[list[str]]:
    """The words of every command in a page's shell blocks, variables that are set before one left out."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for words in (shlex.split(line, comments=True) for line in lines):
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        found += [words] if words else []
    return found


def links(page: str) -> list[str]:
    """What a page links or shows, web addresses left out."""
    text = re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", PAGES[page]).replace("[`", "[").replace("`]", "]"))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def anchors(text: str) -> set[str]:
    """What can stand after the # of a link to a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), flags=re.M)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}
