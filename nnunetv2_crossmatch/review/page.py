"""Rendering of a review as one HTML page for screen and print.

Limit: formats numbers; the layout is in ``templates/review.html.j2``, ``review.css``, and the report's ``report.css``.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from markupsafe import Markup

from nnunetv2_crossmatch.report.charts import COLOURS
from nnunetv2_crossmatch.report.contours import PREDICTION_STYLES, REFERENCE_STYLE
from nnunetv2_crossmatch.report.page import origin_facts, template_environment
from nnunetv2_crossmatch.review.calibration import COVERAGE
from nnunetv2_crossmatch.review.conclusions import UNUSUAL_Z, Conclusions, ReviewedCase
from nnunetv2_crossmatch.review.labeled_cases import volume
from nnunetv2_crossmatch.review.measures import UNSURE_BELOW
from nnunetv2_crossmatch.review.overview import NARROW, WIDE, overview
from nnunetv2_crossmatch.review.pictures import CasePictures

MAX_LISTED_CLASSES = 4
DASH = "–"


@dataclass(frozen=True)
class Origin:
    """What a review was made of: data set, model folder, folder of the cases' results, command line."""

    dataset: str
    model: str
    results: Path
    command: str


@dataclass(frozen=True)
class Cell:
    """A cell of the table: heading, text, a smaller second line, the number to sort by, and whether phones hide it."""

    heading: str
    text: str
    small: str = ""
    number: float = math.nan
    extra: bool = False


@dataclass(frozen=True)
class Row:
    """A case on the page; ``place`` counts from the worst, ``chosen`` among those to label next, 0 for none."""

    place: int
    name: str
    chosen: int
    case: ReviewedCase
    cells: tuple[Cell, ...]
    pictures: CasePictures


def render_page(found: Conclusions, pictures: Mapping[str, CasePictures], origin: Origin) -> str:
    """The page as text."""
    environment = template_environment("review", "report")
    script = environment.get_template("review.js").render()
    rows = make_rows(found, pictures)
    return environment.get_template("review.html.j2").render(
        found=found,
        rows=rows,
        chosen=sorted((row for row in rows if row.chosen), key=lambda row: row.chosen),
        drawn=[row for row in rows if row.pictures.planes],
        slices_chosen=any(picture.caption for row in rows for picture in row.pictures.planes),
        cards=make_cards(found),
        uncertainty=uncertainty_name(found),
        unit="ml" if found.in_ml else "voxels",
        overviews={"wide": overview(found, WIDE), "narrow": overview(found, NARROW)},
        colours=COLOURS,
        contour_colours=(REFERENCE_STYLE["colors"], PREDICTION_STYLES[0]["colors"]),
        coverage=f"{COVERAGE:.0%}",
        unsure_below=UNSURE_BELOW,
        unusual_z=UNUSUAL_Z,
        origin=origin,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **origin_facts(),
    )


def uncertainty_name(found: Conclusions) -> str:
    """What the cases are ordered by."""
    return "disagreement" if found.kinds else "unsure surface"


def make_rows(found: Conclusions, pictures: Mapping[str, CasePictures]) -> list[Row]:
    """All cases, worst first."""
    order = {one.result.case: place for place, one in enumerate(found.chosen, 1)}
    rows = []
    for place, one in enumerate(found.cases, 1):
        name = one.result.case
        drawn = pictures.get(name, CasePictures())
        rows.append(Row(place, name, order.get(name, 0), one, tuple(make_cells(one, found)), drawn))
    return rows


def make_cells(one: ReviewedCase, found: Conclusions) -> list[Cell]:
    """Cells of a case: expected Dice, uncertainties, volumes."""
    result, expected = one.result, one.expected
    cells = []
    if found.calibration:
        shown = (f"{expected.dice:.2f}", f"{expected.low:.2f} to {expected.high:.2f}") if expected else (DASH, "")
        cells.append(Cell("expected Dice", *shown, number=expected.dice if expected else 0.0))
    if found.kinds:
        parts = (f"{kind} {mean(values):.3f}" for kind, values in result.disagreement.items())
        small = ", ".join(parts) if len(found.kinds) > 1 else ""
        cells.append(Cell("disagreement", f"{one.uncertainty:.3f}", small, one.uncertainty))
    entropy = f"entropy {number(result.entropy, 3)}"
    cells.append(Cell("unsure surface", share(result.unsure), entropy, result.unsure, bool(found.kinds)))
    return cells + volume_cells(one, found)


def volume_cells(one: ReviewedCase, found: Conclusions) -> list[Cell]:
    """Volume of each class with its z, the first few classes only."""
    unit = "ml" if found.in_ml else "voxels"
    cells = []
    for name in list(one.result.classes)[:MAX_LISTED_CLASSES]:
        value, z = volume(one.result, name, found.in_ml), one.z[name]
        small = "" if math.isnan(z) else f"z {z:+.1f}"
        cells.append(Cell(f"{name}, {unit}", f"{value:,.1f}" if found.in_ml else f"{value:,.0f}", small, value, True))
    return cells


def make_cards(found: Conclusions) -> list[tuple[str, str, str]]:
    """Label, number and remark at the top of the page."""
    noted = sum(bool(one.notes) for one in found.cases)
    values = [one.uncertainty for one in found.cases]
    spread = f"from {min(values):.3f} to {max(values):.3f}"
    cards = [
        (f"median {uncertainty_name(found)}", f"{median(values):.3f}", spread),
        ("cases with something unusual", f"{noted} of {len(found.cases)}", "beside the labeled cases"),
    ]
    expected = [one.expected.dice for one in found.cases if one.expected]
    if not expected or not found.calibration:
        return [("expected Dice", "not calibrated", "see below"), *cards]
    remark = f"mean over the cases, {min(expected):.2f} to {max(expected):.2f}; learned from {found.calibration.cases}"
    return [("expected Dice", f"{mean(expected):.2f}", f"{remark} held-out cases"), *cards]


def number(value: float, digits: int) -> str:
    """``value``, or a dash for NaN."""
    return DASH if math.isnan(value) else f"{value:.{digits}f}"


def share(value: float) -> str:
    """``value`` in percent, or a dash for NaN."""
    return DASH if math.isnan(value) else f"{value:.1%}"
