"""Rendering of the report as an HTML page for screen and print.

Limit: formats numbers and draws charts; the layout is in ``templates/report.html.j2`` and ``templates/report.css``.
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

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from nnunetv2_crossmatch.evaluation.published import PublishedComparison
from nnunetv2_crossmatch.evaluation.score_files import (
    MEASURE_HEADINGS,
    UNDEFINED,
    format_interval,
    format_measure,
    make_difference_table,
    score_notes,
)
from nnunetv2_crossmatch.evaluation.scores import Difference, Scores, Summary, compare_scores
from nnunetv2_crossmatch.report.case_pictures import CaseFiles, SlicePicture, chart_uri, drawn_file_uri
from nnunetv2_crossmatch.report.charts import group_label, main_distance_measure, plot_cases, plot_pairs
from nnunetv2_crossmatch.report.model_record import FoldRecord, ModelRecord
from nnunetv2_crossmatch.training.progress import draw_curves

PACKAGES = ("nnunetv2_crossmatch", "nnunetv2", "torch", "numpy", "scipy", "SimpleITK", "matplotlib")


@dataclass(frozen=True)
class ReportContent:
    """Content of the report: name to scores (one or two), folders of the files, and the model if one was given."""

    title: str
    scores: Mapping[str, Scores]
    case_files: CaseFiles
    model: ModelRecord | None
    published: PublishedComparison | None

    @property
    def main(self) -> Scores:
        """Scores of the first predictions, the subject of the report."""
        return next(iter(self.scores.values()))

    @property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """Paired differences to the other predictions; empty if there are none."""
        return compare_scores(*self.scores.values()) if len(self.scores) > 1 else {}


@dataclass(frozen=True)
class CaseEntry:
    """A case in the list of cases, with its pictures if it has any."""

    rank: int
    name: str
    dice: float
    cells: Mapping[str, str]
    empty_mask_notes: tuple[str, ...]
    slices: tuple[SlicePicture, ...] = ()
    surfaces: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    drawing_error: str = ""


def render_page(content: ReportContent, cases: Sequence[CaseEntry], command: str) -> str:
    """Render the report as HTML."""
    return (
        template_environment("report")
        .get_template("report.html.j2")
        .render(
            title=content.title,
            scores=content.main,
            names=list(content.scores),
            folders=[content.case_files.reference, *content.case_files.predictions.values()],
            headline_numbers=headline_numbers(content),
            summary=make_summary_rows(content.main),
            score_notes=score_notes(content.main),
            has_images=content.case_files.images is not None,
            dots=draw_for_both_widths(partial(plot_cases, content.scores)),
            cases=cases,
            drawn=[case for case in cases if case.slices],
            comparison=make_comparison_section(content),
            published=content.published,
            model=content.model,
            curves=draw_training_curves(content.model),
            command=command,
            **origin_facts(),
        )
    )


def template_environment(*packages: str) -> Environment:
    """Templates of these packages of ours, the first one's before the others'."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(f"nnunetv2_crossmatch.{name}") for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def origin_facts() -> dict[str, Any]:
    """Versions by package, and the present time, as the last section of a page shows them."""
    return {
        "versions": {name: version(name) for name in PACKAGES} | {"Python": platform.python_version()},
        "written": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    }


def headline_numbers(content: ReportContent) -> list[dict[str, str]]:
    """Numbers at the top of the report: mean, interval, and the difference to the other predictions."""
    scores = content.main
    group, distance = scores.groups[-1], main_distance_measure(scores)
    statistics, differences = scores.summary()[group], content.differences.get(group, {})

    def card(measure: str) -> dict[str, str]:
        one = statistics[measure]
        shown = {"label": MEASURE_HEADINGS[measure], "mean": format_measure(one.mean, measure)}
        interval = format_interval(one, measure)
        shown["interval"] = (
            "no interval: fewer than two cases" if interval == UNDEFINED else f"95 % interval {interval}"
        )
        shown["difference"] = format_difference(differences[measure], measure) if measure in differences else ""
        return shown

    return [card(measure) for measure in ("dice", distance, distance.replace("hd95", "asd"))]


def format_difference(statistic: Difference, measure: str) -> str:
    """Format a difference with its sign and interval, if it has one."""
    sign, interval = "+" if statistic.mean > 0 else "", format_interval(statistic, measure)
    return f"{sign}{format_measure(statistic.mean, measure)}" + (f" ({interval})" if interval != UNDEFINED else "")


def make_summary_rows(scores: Scores) -> list[tuple[str, dict[str, dict[str, str]]]]:
    """Class, and a mapping of heading to mean, interval (or ""), SD and number of cases, all formatted."""

    def cell(statistic: Summary, measure: str) -> dict[str, str]:
        interval = format_interval(statistic, measure)
        found = {"interval": "" if interval == UNDEFINED else interval, "cases": str(statistic.defined)}
        return found | {"mean": format_measure(statistic.mean, measure), "sd": format_measure(statistic.std, measure)}

    return [
        (group_label(group), {MEASURE_HEADINGS[name]: cell(one, name) for name, one in ones.items()})
        for group, ones in scores.summary().items()
    ]


def make_comparison_section(content: ReportContent) -> dict[str, Any] | None:
    """Table and charts of the paired differences; None without other predictions."""
    if len(content.scores) < 2:
        return None
    (name, scores), (other_name, other) = content.scores.items()
    table = make_difference_table(content.differences, Path(other_name))
    rows = [(group_label(group), *rest) for group, *rest in table.rows]
    charts = draw_for_both_widths(partial(plot_pairs, (name, scores), (other_name, other)))
    return {"other": other_name, "columns": table.columns, "rows": rows, "chart": charts}


def draw_training_curves(model: ModelRecord | None) -> list[tuple[FoldRecord, dict[str, Any]]]:
    """Draw the training curves of every fold."""

    def pictures(fold: FoldRecord) -> dict[str, Any]:
        columns = {"wide": 4, "narrow": 1}
        drawn = {
            width: drawn_file_uri(partial(draw_curves, fold.curves, columns=count), "png")
            for width, count in columns.items()
        }
        return {**drawn, "inches": 10}

    return [(fold, pictures(fold)) for fold in model.folds if fold.curves] if model else []


def draw_for_both_widths(draw: Callable[..., Any]) -> dict[str, Any]:
    """Draw a chart for wide and for narrow screens; ``inches`` is the width of the first."""
    wide = draw()
    return {"wide": chart_uri(wide), "narrow": chart_uri(draw(narrow=True)), "inches": wide.get_figwidth()}
