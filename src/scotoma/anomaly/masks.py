"""Mask files that belong to an image: brain masks, and masks of what is not to be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scotoma.data.dataset import Case
from scotoma.data.grid import Grid
from scotoma.data.image import grid_difference, is_image_file, read_mask, stem
from scotoma.data.reorient import turned_onto
from scotoma.errors import InputError

SAME_PLACE = 0.01
"""mm that the corner voxels of an image and its mask may lie apart."""


def find_mask_file(case: Case, name: str) -> Path:
    """The mask of a case that a setting names.

    Looked for, in this order: in a folder given by its path; `<name>.*` beside the channels, where each
    case is a folder; `<case>.*` in a folder `<name>` beside the folder of the images, the same with the
    ending of that folder (`brainTr` beside `imagesTr`), or inside it.

    Args:
        case: with at least one image.
        name: a folder, or the stem of a file.

    Raises:
        InputError: nothing there.
    """
    home = case.images[0].parent
    ending = home.name.removeprefix("images")
    places = [
        *([(Path(name), case.id)] if len(Path(name).parts) > 1 else []),
        *([(home, name)] if home.name == case.id else []),
        (home.parent / name, case.id),
        (home.parent / f"{name}{ending}", case.id),
        (home / name, case.id),
    ]
    for folder, wanted in places:
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        if found := [p for p in entries if stem(p) == wanted and is_image_file(p)]:
            return found[0]
    raise InputError(
        f"{case.images[0]}: there is no mask '{name}' for it, as a file beside the channels of its case"
        f" folder or as '{case.id}' in a folder '{name}' beside the images; add it, or change"
        " anomaly.brain or anomaly.exclude."
    )


def read_mask_like(path: Path, grid: Grid) -> np.ndarray:
    """A mask as (*S) bool on the grid of its image.

    Raises:
        InputError: unreadable, or on another grid.
    """
    mask = read_mask(path)
    array = mask.array
    if difference := grid_difference(grid, mask.grid, SAME_PLACE):
        turned = turned_onto(array, mask.grid, grid, SAME_PLACE)
        if turned is None:
            raise InputError(
                f"{path}: not on the grid of its image ({difference}); resample the mask to the image."
            )
        array = turned
    return array != 0
