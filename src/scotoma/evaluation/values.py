"""What the values in truth and predictions mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from scotoma.data.labels import LabelMap, propose_label_map
from scotoma.errors import InputError, SettingsError

ValueMap = Mapping[int, int | Literal["ignore"]]
"""Value in the files -> class index or "ignore", as `data.label_map` in the settings."""
_EXAMPLE = 'write it as in --label-map "{0: 0, 255: 1, 128: ignore}", value: class'


@dataclass(frozen=True)
class Values:
    """What the values in the files of both sides mean."""

    truth: LabelMap
    prediction: LabelMap


def read_value_map(text: str) -> ValueMap:
    """The value of `--label-map`, YAML.

    Raises:
        SettingsError: no map of values to classes.

    Example:
        >>> read_value_map("{0: 0, 5: 1, 9: ignore}")
        {0: 0, 5: 1, 9: 'ignore'}
    """
    try:
        return TypeAdapter(dict[int, int | Literal["ignore"]]).validate_python(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError):
        raise SettingsError(f"--label-map '{text}': not a map; {_EXAMPLE}.") from None


def name_classes(values: ValueMap, known: LabelMap | None, label_names: Mapping[int, str] | None) -> LabelMap:
    """A label map from values alone.

    Args:
        values: value in the files -> class index or "ignore".
        known: another map of the same masks, whose names are taken where it has as many classes.
        label_names: value -> name, where the dataset says it.

    Raises:
        SettingsError: the map is incomplete or contradicts itself.
    """
    targets = [c for c in values.values() if c != "ignore"]
    count = max(targets, default=0) + 1
    if known is not None and len(known.classes) == count:
        names = known.classes
    else:
        first = {c: v for v, c in reversed(list(values.items())) if c != "ignore"}
        names = ["background"] + [
            (label_names or {}).get(first.get(c, -1), "object" if count == 2 else f"class {c}")
            for c in range(1, count)
        ]
    try:
        return LabelMap.model_validate({"classes": names, "values": values})
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SettingsError(f"--label-map: {why}; {_EXAMPLE}.") from None


def class_map(label_map: LabelMap, raw: np.ndarray, file: Path) -> np.ndarray:
    """`LabelMap.apply`, whose complaint about a value names the option of `evaluate`, which has no settings.

    Args:
        raw: (*S) mask, values as in the file.
        file: named in the error.

    Returns:
        uint8 (*S) class indices, or `IGNORE`.

    Raises:
        InputError: a value that the map does not list.
    """
    try:
        return label_map.apply(raw, file)
    except InputError:
        unknown, known = np.setdiff1d(raw, list(label_map.values)), sorted(label_map.values)
        raise InputError(
            f"{file}: unexpected label value {_shown(unknown)} (expected {_shown(known)}); "
            "list it in --label-map with the others, as a class or as 'ignore'."
        ) from None


def interpret(
    label_map: LabelMap | None,
    label_names: Mapping[int, str] | None,
    truth: Mapping[str, Collection[int]],
    prediction: Mapping[str, Collection[int]],
) -> tuple[Values, list[str]]:
    """Decide which value is which class on both sides.

    Args:
        label_map: of the masks, where it is known; a side whose values it does not list may hold the numbers
            of the classes.
        label_names: value -> name, where the dataset says it.
        truth: case -> distinct values in its mask.
        prediction: case -> distinct values in its prediction.

    Returns:
        The two maps, which have the same classes, and sentences about what was not obvious.

    Raises:
        InputError: predictions with values that fit no reading.

    Example:
        >>> values, notes = interpret(None, None, {"a": [0, 255]}, {"a": [0, 1]})
        >>> values.truth.values, values.prediction.values
        ({0: 0, 255: 1}, {0: 0, 1: 1})
    """
    in_truth = sorted({int(v) for values in truth.values() for v in values})
    predicted = sorted({int(v) for values in prediction.values() for v in values})
    if label_map is None:
        label_map, notes = propose_label_map(truth, label_names)
        several = len(set(predicted) - {0}) > 1 and set(in_truth) <= set(predicted)
        if len(label_map.classes) == 2 and several and not label_names:
            both = {case: {*values, *prediction.get(case, ())} for case, values in truth.items()}
            label_map, notes = propose_label_map(both)
        of_truth, notes = label_map, [f"truth: {note}" for note in notes]
    else:
        of_truth, notes = _for_truth(label_map, in_truth)
    fitting, more = _for_predictions(label_map, predicted)
    return Values(of_truth, fitting), notes + more


def _for_truth(label_map: LabelMap, found: list[int]) -> tuple[LabelMap, list[str]]:
    if label_map.instances or set(found) <= set(label_map.values):
        return label_map, []
    classes, objects = label_map.classes, [v for v in found if v != 0]
    if len(classes) == 2 and len(objects) == 1:
        note = f"truth: holds {_shown(found)}; {objects[0]} is taken as {classes[1]}"
        return _binary(classes, objects[0]), [note]
    # A value to which the map gives another number speaks against class numbers; its cases will say so.
    if all(0 <= v < len(classes) and label_map.values.get(v, v) == v for v in found):
        return LabelMap.plain(classes), [f"truth: its values, {_shown(found)}, are taken as class numbers"]
    return label_map, []


def _for_predictions(label_map: LabelMap, predicted: list[int]) -> tuple[LabelMap, list[str]]:
    if label_map.instances or set(predicted) <= set(label_map.values):
        return label_map, []
    classes = label_map.classes
    if all(0 <= v < len(classes) for v in predicted):
        return LabelMap.plain(classes), [
            f"predictions hold {_shown(predicted)}, the truth {_shown(sorted(label_map.values))}; "
            "the predictions' values are taken as class numbers"
        ]
    objects = [v for v in predicted if v != 0]
    if len(classes) == 2 and len(objects) == 1:
        return _binary(classes, objects[0]), [
            f"predictions hold {_shown(predicted)}; {objects[0]} is taken as {classes[1]}"
        ]
    raise InputError(
        f"predictions hold the values {_shown(predicted)}, which fit none of the classes "
        f"{', '.join(classes)}; say which value is which class with --label-map, "
        'as in --label-map "{0: 0, 255: 1, 128: ignore}".'
    )


def _binary(classes: list[str], value: int) -> LabelMap:
    return LabelMap(classes=classes, values={0: 0, value: 1})


def _shown(values: Collection[float] | np.ndarray) -> str:
    shown = ", ".join(f"{v:g}" for v in list(values)[:6])
    return shown + (", ..." if len(values) > 6 else "")
