"""From the values in a mask file to classes, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from scotoma.errors import InputError

IGNORE = 255
"""The value of a voxel that does not count, in every class map inside the package."""


class LabelMap(BaseModel):
    """How the values found in mask files become classes 0 (background), 1, 2, ...

    Attributes:
        classes: names, background first.
        values: value in the file -> class index, or "ignore". Values not listed are an error.
        instances: every value other than 0 is an object of class 1 (instance ids); `values` is not used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: list[str]
    values: dict[int, int | Literal["ignore"]] = {}
    instances: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> LabelMap:
        if not 2 <= len(self.classes) < IGNORE:
            raise ValueError(f"a label map needs 2 to {IGNORE - 1} classes, background first")
        if self.instances:
            if len(self.classes) != 2:
                raise ValueError("instance ids give exactly two classes, background and object")
            return self
        used = {c for c in self.values.values() if c != "ignore"}
        if missing := set(range(len(self.classes))) - used:
            names = ", ".join(self.classes[c] for c in sorted(missing))
            raise ValueError(f"no value in the label map stands for: {names}")
        if extra := used - set(range(len(self.classes))):
            raise ValueError(
                f"the label map names class {min(extra)}, but there are {len(self.classes)} classes"
            )
        return self

    @classmethod
    def plain(cls, classes: list[str]) -> LabelMap:
        """Value n is class n."""
        return cls(classes=classes, values={n: n for n in range(len(classes))})

    def describe(self) -> str:
        """What the values in the masks stand for, in words."""
        if self.instances:
            return "object ids; every non-zero value is one object"
        return ", ".join(
            f"{value} = {index if index == 'ignore' else self.classes[index]}"
            for value, index in self.values.items()
        )

    def apply(self, raw: np.ndarray, source: object = "the mask") -> np.ndarray:
        """Turn a raw mask into a class map.

        Args:
            raw: integer or float array of any shape, values as in the file.
            source: file named in the error.

        Returns:
            uint8 array of the same shape: class indices, or `IGNORE`.

        Raises:
            InputError: a value that the map does not list.
        """
        if self.instances:
            return (raw != 0).astype(np.uint8)
        out = np.full(raw.shape, IGNORE, dtype=np.uint8)
        known = np.zeros(raw.shape, dtype=bool)
        for value, target in self.values.items():
            here = raw == value
            known |= here
            if target != "ignore":
                out[here] = target
        if not known.all():
            wrong = ", ".join(f"{v:g}" for v in np.unique(raw[~known])[:5])
            expected = ", ".join(str(v) for v in sorted(self.values))
            raise InputError(
                f"{source}: unexpected label value {wrong} (expected {expected}); "
                "list it under data.label_map in the settings, as a class or as 'ignore'."
            )
        return out

    def written(self) -> list[int]:
        """The value that stands for each class in a mask that is written, the first one listed."""
        if self.instances:
            return [0, 1]
        return [next(v for v, c in self.values.items() if c == n) for n in range(len(self.classes))]

    def restore(self, classes: np.ndarray) -> np.ndarray:
        """Turn a class map into the values of the user's own files (int32 where they need it)."""
        table = np.array(self.written())
        kind = np.uint8 if table.min() >= 0 and table.max() <= 255 else np.int32
        return table.astype(kind)[classes]


def keep_annotated(class_map: np.ndarray, annotated: list[int] | None) -> np.ndarray:
    """Ignore what a case that is annotated for only some classes cannot tell.

    Background in such a case may hide any class that nobody drew there, so it does not count; the
    drawn classes do.

    Args:
        class_map: uint8 class map.
        annotated: foreground classes drawn in this case, None for all of them.
    """
    if annotated is None:
        return class_map
    return np.where(np.isin(class_map, annotated), class_map, np.uint8(IGNORE))


_MANY_OBJECTS = 8
_CASES_TO_JUDGE = 4


def propose_label_map(
    values: Mapping[str, Collection[int]], label_names: Mapping[int, str] | None = None
) -> tuple[LabelMap, list[str]]:
    """Guess what the values found in the masks of a dataset mean.

    Args:
        values: case -> the distinct values in its mask, background included.
        label_names: value -> name where the dataset says it; then the values found change nothing. The
            name "ignore" marks voxels that do not count.

    Returns:
        The map, and one sentence for every decision that was not obvious. A value that occurs in one case
        only, while every other value is common, is taken for a mistake and left out of the map.

    Example:
        >>> label_map, why = propose_label_map({"a": [0, 255], "b": [0, 255]})
        >>> label_map.values
        {0: 0, 255: 1}
    """
    if label_names:
        return _named(label_names)
    sets = [frozenset(int(v) for v in found) for found in values.values()]
    counts = Counter(v for found in sets for v in found)
    if not set(counts) - {0}:
        return LabelMap.plain(["background", "object"]), ["every mask is empty; one class is assumed"]
    if why := _looks_like_instances(sets):
        return LabelMap(classes=["background", "object"], instances=True), [why]
    reasons: list[str] = []
    ignored = sorted(v for v in counts if v < 0)
    if ignored:
        reasons.append(f"negative values ({_list(ignored)}) are taken to mean 'ignore'")
    kept = sorted(v for v in counts if v >= 0)
    foreground = [v for v in kept if v != 0]
    if len(sets) >= _CASES_TO_JUDGE and len(foreground) > 1:
        lone = [v for v in foreground if counts[v] == 1]
        if lone and all(counts[v] > 1 for v in foreground if v not in lone) and len(lone) < len(foreground):
            reasons.append(f"value {_list(lone)} occurs in one case only and is taken for a mistake")
            kept = [v for v in kept if v not in lone]
    if not kept:
        kept = [0]
    if kept[0] != 0:
        reasons.append(f"no voxel has the value 0; the lowest value, {kept[0]}, is taken as background")
    foreground = kept[1:]
    if len(foreground) + 2 > IGNORE:
        why = (
            f"{len(foreground)} different values are more than there can be classes; taken as ids of objects"
        )
        return LabelMap(classes=["background", "object"], instances=True), [why]
    if foreground == [1, 255] and not any({1, 255} <= found for found in sets):
        reasons.append("some masks mark the object with 1 and others with 255; both mean the object")
        return _build(["background", "object"], {kept[0]: 0, 1: 1, 255: 1}, ignored), reasons
    if len(foreground) > 1 and foreground[-1] == 255 and kept[:-1] == list(range(len(kept) - 1)):
        reasons.append(f"255 beside 0 to {kept[-2]} is taken to mean 'ignore'")
        ignored.append(foreground.pop())
    if foreground and foreground != list(range(1, len(foreground) + 1)):
        reasons.append(_renumbered(foreground))
    foreground = foreground or [1]
    names = ["object"] if len(foreground) == 1 else [f"class {n}" for n in range(1, len(foreground) + 1)]
    return _build(
        ["background", *names], {v: n for n, v in enumerate([kept[0], *foreground])}, ignored
    ), reasons


def _build(classes: list[str], values: Mapping[int, int], ignored: Collection[int]) -> LabelMap:
    targets: dict[int, int | Literal["ignore"]] = {}
    targets.update(values)
    for value in ignored:
        targets[value] = "ignore"
    return LabelMap(classes=classes, values=targets)


def _named(label_names: Mapping[int, str]) -> tuple[LabelMap, list[str]]:
    reasons: list[str] = []
    ignored = [v for v, name in label_names.items() if name.lower() == "ignore"]
    kept = {v: label_names[v] for v in sorted(label_names) if v not in ignored}
    if 0 not in kept:
        kept = {0: "background"} | kept
        reasons.append("the value 0 has no name; it is taken as background")
    if len(kept) < 2:
        raise InputError("the dataset names no class besides background; correct 'labels' in dataset.json.")
    order = [0, *(v for v in kept if v != 0)]
    if ignored:
        reasons.append(f"value {_list(ignored)} is named 'ignore'")
    if order != list(range(len(order))):
        reasons.append(_renumbered(order[1:]))
    return _build([kept[v] for v in order], {v: n for n, v in enumerate(order)}, ignored), reasons


def _looks_like_instances(sets: list[frozenset[int]]) -> str | None:
    """Why the values seem to be ids of objects; None when they do not."""
    found = [s - {0} for s in sets if s - {0}]
    if any(v < 0 for s in found for v in s):
        return None
    most = max(len(s) for s in found)
    # Classes give few different sets of values; ids give one for every count of objects.
    if most < _MANY_OBJECTS or (len(found) > 1 and len(set(found)) <= min(len(found) // 4, 8)):
        return None
    consecutive = sum(max(s) <= 1.25 * len(s) for s in found)
    if len(found) == 1 or consecutive < 0.8 * len(found):
        return None
    least = min(len(s) for s in found)
    if least > 0.8 * most:
        return None
    return (
        f"masks hold {least} to {most} different values, counted from 1 in each case anew; "
        "taken as ids of objects of one class (data.instances)"
    )


def _renumbered(values: Collection[int]) -> str:
    if len(values) == 1:
        return f"value {_list(values)} becomes class 1"
    return f"values {_list(values)} become classes 1 to {len(values)}"


def _list(values: Collection[int]) -> str:
    shown = ", ".join(str(v) for v in list(values)[:6])
    return shown + (", ..." if len(values) > 6 else "")
