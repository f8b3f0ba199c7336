"""The page of the report: what was found, laid out as HTML for screen and print.

Limit: turns numbers into text and charts; the look is in ``templates/report.html.j2`` and ``templates/report.css``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunetv2_crossmatch.evaluation.published import Comparison
from nnunetv2_crossmatch.evaluation.score_files import HEADINGS, difference_table, number, remarks
from nnunetv2_crossmatch.evaluation.scores import Difference, Scores, Summary, compare
from nnunetv2_crossmatch.report.case_pictures import Sources, Tile, chart_uri, file_uri
from nnunetv2_crossmatch.report.charts import draw_dots, draw_pairs, label_of, main_distance
from nnunetv2_crossmatch.report.model_record import FoldRecord, ModelRecord
from nnunetv2_crossmatch.training.progress import draw_curves

PACKAGES = ("nnunetv2_crossmatch", "nnunetv2", "torch", "numpy", "scipy", "SimpleITK", "matplotlib")


@dataclass(frozen=True)
class Findings:
    """What there is to show: scores by name (one or two), where the files are, and the model if one was given."""

    title: str
    scores: Mapping[str, Scores]
    sources: Sources
    model: ModelRecord | None
    published: Comparison | None

    @property
    def main(self) -> Scores:
        """Scores of the predictions that the report is about."""
        return next(iter(self.scores.values()))

    @property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """Paired differences to the other predictions; empty without them."""
        return compare(*self.scores.values()) if len(self.scores) > 1 else {}


@dataclass(frozen=True)
class CaseEntry:
    """One case in the list, the worst first, with its pictures if it has any."""

    rank: int
    name: str
    dice: float
    cells: Mapping[str, str]
    marks: tuple[str, ...]
    tiles: tuple[Tile, ...] = ()
    surfaces: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)


def render(findings: Findings, cases: Sequence[CaseEntry], command: str) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("nnunetv2_crossmatch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=findings.title,
        scores=findings.main,
        names=list(findings.scores),
        folders=[findings.sources.reference, *findings.sources.predictions.values()],
        headline=headline(findings),
        summary=summary_rows(findings.main),
        remarks=remarks(findings.main),
        has_images=findings.sources.images is not None,
        dots=both_widths(partial(draw_dots, findings.scores)),
        cases=cases,
        drawn=[case for case in cases if case.tiles],
        comparison=comparison(findings),
        published=findings.published,
        model=findings.model,
        curves=curves(findings.model),
        versions={name: version(name) for name in PACKAGES} | {"Python": platform.python_version()},
        command=command,
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )


def headline(findings: Findings) -> list[dict[str, str]]:
    """The few numbers that come first: mean, interval, and the difference to the other predictions."""
    scores = findings.main
    group, distance = scores.groups[-1], main_distance(scores)
    statistics, differences = scores.summary()[group], findings.differences.get(group, {})

    def card(measure: str) -> dict[str, str]:
        one = statistics[measure]
        shown = {"label": HEADINGS[measure], "mean": number(one.mean, measure)}
        shown["interval"] = f"{number(one.low, measure)} to {number(one.high, measure)}"
        shown["difference"] = signed(differences[measure], measure) if measure in differences else ""
        return shown

    return [card(measure) for measure in ("dice", distance, distance.replace("hd95", "asd"))]


def signed(of: Difference, measure: str) -> str:
    """A difference with its sign and interval."""
    sign = "+" if of.mean > 0 else ""
    return f"{sign}{number(of.mean, measure)} ({number(of.low, measure)} to {number(of.high, measure)})"


def summary_rows(scores: Scores) -> list[tuple[str, dict[str, dict[str, str]]]]:
    """Class to heading to mean, interval, SD and number of cases, as text."""

    def cell(of: Summary, measure: str) -> dict[str, str]:
        spread = {"mean": of.mean, "low": of.low, "high": of.high, "sd": of.std}
        return {key: number(value, measure) for key, value in spread.items()} | {"cases": str(of.defined)}

    return [
        (label_of(group), {HEADINGS[name]: cell(one, name) for name, one in ones.items()})
        for group, ones in scores.summary().items()
    ]


def comparison(findings: Findings) -> dict[str, Any] | None:
    """Table and pictures of the paired differences; nothing without other predictions."""
    if len(findings.scores) < 2:
        return None
    (name, scores), (other_name, other) = findings.scores.items()
    table = difference_table(findings.differences, Path(other_name))
    rows = [(label_of(group), *rest) for group, *rest in table.rows]
    charts = both_widths(partial(draw_pairs, (name, scores), (other_name, other)))
    return {"other": other_name, "columns": table.columns, "rows": rows, "chart": charts}


def curves(model: ModelRecord | None) -> list[tuple[FoldRecord, dict[str, Any]]]:
    """Training curves of every fold."""

    def pictures(fold: FoldRecord) -> dict[str, Any]:
        columns = {"wide": 4, "narrow": 1}
        drawn = {
            width: file_uri(partial(draw_curves, fold.curves, columns=count), "png") for width, count in columns.items()
        }
        return {**drawn, "inches": 10}

    return [(fold, pictures(fold)) for fold in model.folds if fold.curves] if model else []


def both_widths(draw: Callable[..., Any]) -> dict[str, Any]:
    """A chart for wide and for narrow screens, and how wide the first should be, in inches."""
    wide = draw()
    return {"wide": chart_uri(wide), "narrow": chart_uri(draw(narrow=True)), "inches": wide.get_figwidth()}
