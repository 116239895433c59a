"""From the values in a mask file to classes, and back."""

from __future__ import annotations

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
            raise ValueError(f"the label map names class {min(extra)}, but there are {len(self.classes)} classes")
        return self

    @classmethod
    def plain(cls, classes: list[str]) -> LabelMap:
        """Value n is class n."""
        return cls(classes=classes, values={n: n for n in range(len(classes))})

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
