"""Names of classes, cases and folders as text for matplotlib.

Limit: the HTML page is escaped by its template, the tables of scores by ``score_files``.
"""

from __future__ import annotations


def plain_text(name: str) -> str:
    """``name`` such that matplotlib draws it unchanged: dollar signs start no formula, line breaks become blanks."""
    return " ".join(name.split()).replace("$", r"\$")


def legend_text(name: str) -> str:
    """``name`` for a legend, which omits entries that start with an underscore."""
    return f" {name}" if name.startswith("_") else name
