"""Folders of cases: which images belong together, and which mask belongs to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One examination.

    Attributes:
        id: name without folder, channel suffix and extension; unique within its split.
        images: one file per channel, or one file with all channels, or one DICOM folder.
        label: mask file, None when there is none.
        patient: cases of one patient never stand on both sides of a split.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    patient: str = ""


@dataclass(frozen=True)
class Dataset:
    """A folder of cases in one of the layouts that are read.

    Attributes:
        root: the folder.
        layout: "nnunet", "msd", "paired" or "cases".
        train: cases to train on, sorted by id; label None where the mask is missing.
        test: cases set aside by the layout itself (imagesTs), possibly without masks.
        channel_names: as the layout names them; None when it does not (raster channels are R, G, B or grey).
        label_names: value -> name, as the layout names them, else None.
        orphan_labels: masks without an image.
    """

    root: Path
    layout: str
    train: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    channel_names: tuple[str, ...] | None = None
    label_names: dict[int, str] | None = None
    orphan_labels: tuple[Path, ...] = field(default=())
