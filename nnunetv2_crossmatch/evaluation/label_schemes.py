"""Label schemes of predictions and references: finds every ``dataset.json``, compares them, and maps label numbers.

Limit: reads ``dataset.json`` files only; ``segmentations`` applies the mapping to label arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_crossmatch.errors import InputError, Problem, raise_if_any
from nnunetv2_crossmatch.evaluation.segmentations import LabelScheme, PredictionLabels, read_label_scheme

DATASET_JSON = "dataset.json"


@dataclass(frozen=True)
class _SchemeFile:
    """A ``dataset.json`` and its content."""

    file: Path
    scheme: LabelScheme

    def describe(self, classes: Sequence[str]) -> str:
        """Label numbers of ``classes``, as text."""
        numbers = (f"{name} {'+'.join(map(str, self.scheme.classes[name]))}" for name in classes)
        return f"{', '.join(numbers)} in {self.file}"


def read_label_schemes(
    reference: Path, predictions: Sequence[Path], requested: Path | None = None
) -> list[PredictionLabels]:
    """Label schemes of folders of ``predictions``, all with the classes and label numbers of the reference.

    The reference is described by ``requested``, else by the ``dataset.json`` of its data set, else by that of the first
    predictions; predictions by the ``dataset.json`` in their folder, else like the reference. Where both files name the
    same classes with other numbers, the labels of the predictions are mapped, with a note.

    Raises:
        InputError: no ``dataset.json`` exists or one is unusable; the classes differ and no file was requested, or
            regions with other numbers have no counterpart.
    """
    own_files = [folder / DATASET_JSON for folder in predictions]
    candidates = [*(folder / DATASET_JSON for folder in dataset_folder_candidates(reference)), *own_files]
    found = next((file for file in candidates if file.is_file()), None)
    if requested is None and found is None:
        searched = " and ".join(map(str, dict.fromkeys([*own_files, *candidates])))
        fix = "say which data set it is: -d ID or -djfile FILE"
        raise InputError(Problem("no dataset.json", "", f"looked for {searched}", fix))
    first = _read(requested or found)  # type: ignore[arg-type]
    notes = _replaced_file_notes(first, found) if requested is not None else ()
    own = [_read(file) if file.is_file() else first for file in own_files]
    results = [_labels_of(prediction, first, requested is not None) for prediction in own]
    raise_if_any([result for result in results if isinstance(result, Problem)])
    return [replace(one, notes=(*notes, *one.notes)) for one in results if isinstance(one, PredictionLabels)]


def dataset_folder_candidates(reference: Path) -> tuple[Path, ...]:
    """Folders that may be the data set's: the parent of ``reference`` and, if that is a link, of its target."""
    return tuple(dict.fromkeys((reference.absolute().parent, reference.resolve().parent)))


def map_labels(prediction: LabelScheme, reference: LabelScheme) -> dict[int, int] | None:
    """Label number of the predictions to that of the reference with the same class names; empty if all are equal.

    Returns:
        None if a label of one scheme has no counterpart: names differ, or regions consist of other parts.
    """
    if _as_sets(prediction) == _as_sets(reference):
        return {}
    predicted, expected = _names_of_labels(prediction), _names_of_labels(reference)
    if set(predicted.values()) != set(expected.values()):
        return None
    numbers = {names: label for label, names in reversed(expected.items())}
    return {label: numbers[names] for label, names in predicted.items()}


def _read(file: Path) -> _SchemeFile:
    return _SchemeFile(file, read_label_scheme(file))


def _as_sets(scheme: LabelScheme) -> dict[str, set[int]]:
    return {name: set(values) for name, values in scheme.classes.items()}


def _names_of_labels(scheme: LabelScheme) -> dict[int, frozenset[str]]:
    """Label number to the names of all classes and regions that contain it."""
    labels = sorted({value for values in scheme.classes.values() for value in values})
    return {label: frozenset(n for n, values in scheme.classes.items() if label in values) for label in labels}


def _labels_of(prediction: _SchemeFile, reference: _SchemeFile, is_requested: bool) -> PredictionLabels | Problem:
    """Classes of the reference with file ending and reader of the predictions, unless the user has given one file."""
    source = reference if is_requested else prediction
    scheme = replace(reference.scheme, file_ending=source.scheme.file_ending, content=source.scheme.content)
    mapping = map_labels(prediction.scheme, reference.scheme)
    if mapping is not None:
        return PredictionLabels(scheme, mapping, _mapping_notes(prediction, reference) if mapping else ())
    described = f"{prediction.describe(list(prediction.scheme.classes))}; but {reference.describe(scheme.names)}"
    if is_requested:
        note = f"All labels are read with the given file, although the predictions' file differs: {described}."
        return PredictionLabels(scheme, {}, (note,))
    fix = "name the classes alike in both files, or give the file that describes both with -djfile"
    return Problem("classes differ", prediction.file, described, fix)


def _mapping_notes(prediction: _SchemeFile, reference: _SchemeFile) -> tuple[str, ...]:
    classes = [n for n, values in _as_sets(reference.scheme).items() if values != _as_sets(prediction.scheme)[n]]
    described = f"{prediction.describe(classes)}; {reference.describe(classes)}"
    return (f"Labels of the predictions were mapped by the names of the classes: {described}.",)


def _replaced_file_notes(requested: _SchemeFile, found: Path | None) -> tuple[str, ...]:
    """A note if the given file replaces a differing ``dataset.json`` of the reference's data set."""
    if found is None or found.resolve() == requested.file.resolve():
        return ()
    other = _read(found)
    if _as_sets(other.scheme) == _as_sets(requested.scheme):
        return ()
    described = f"{requested.describe(requested.scheme.names)}; but {other.describe(other.scheme.names)}"
    return (f"Labels of the reference are those of the given file: {described}.",)
