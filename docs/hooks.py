"""What the site needs beyond Markdown: the repository's own pages, links that leave ``docs``, and no foreign assets.

A document links relative to its place in the repository, so that it works where the repository is looked at. On the
site README, CHANGELOG, CONTRIBUTING and SECURITY are pages, too, and a link to one of them is turned to that page. A
link to anything else outside of the pages, as a test or a folder of score files, becomes its text: copying hundreds of
files of numbers would serve nobody, and a static site cannot show a folder.

Limit: inline links and images, not reference definitions; nothing inside of code.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Documents in the root of the repository, and the pages that they are on the site."""

CODE = r"^(?:(?: {4}|\t).*|```.*\n(?:.*\n)*?```)$|`+[^`]+`+"
LINK = re.compile(rf"(?P<code>{CODE})|(?P<text>\[[^\]]*\])\((?P<target>[^)\s]+)\)", re.MULTILINE)
SOURCE = r"<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc|<link\b[^>]*\shref"
FOREIGN = re.compile(rf"(?:{SOURCE})=[\"']?(?:https?:)?//[^\"'>\s]*")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code)")
log = logging.getLogger("mkdocs.hooks.site")


def page_of(path: str) -> str | None:
    """Page on the site of a file, both relative to their roots; None if it is none."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    inside = path.startswith("docs/") and not path.startswith("docs/results/")
    return path.removeprefix("docs/") if inside and (REPOSITORY / path).is_file() else None


def site_links(text: str, source: str) -> str:
    """``text`` of the document ``source`` (path in the repository) with the links that its page on the site needs."""
    start = posixpath.dirname(page_of(source) or "")

    def link(match: re.Match[str]) -> str:
        target, anchor = (match["target"] or "").partition("#")[::2]
        if match["code"] or not target or ":" in target:
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        page = page_of(file)
        if page is None:  # what is not there stays, for mkdocs to warn of
            return match["text"][1:-1] if (REPOSITORY / file).exists() else match[0]
        return f"{match['text']}({posixpath.relpath(page, start or '.')}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(link, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents of the root."""
    from mkdocs.structure.files import File

    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn the links; a page that is a tab by itself needs no list of the pages beside it."""
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])
    return site_links(markdown, Path(page.file.abs_src_path).relative_to(REPOSITORY).as_posix())


def on_page_content(html: str, **_: object) -> str:
    """Remove the names of Sphinx's roles from docstrings."""
    return ROLE.sub("", html)


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Warn, which stops the strict build, of a page that loads something from another place."""
    for found in FOREIGN.findall(output):
        log.warning("%s loads something from another place: %s", page.file.src_uri, found)
    return output
