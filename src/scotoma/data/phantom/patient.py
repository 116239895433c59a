"""One phantom patient: brain, lesions, images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scotoma.data.grid import Grid
from scotoma.data.phantom.anatomy import load_atlas, make_anatomy
from scotoma.data.phantom.lesions import MIN_VOXELS, draw_volumes, plant_lesions
from scotoma.data.phantom.signal import add_confounders, paint_lesions, scan, tissue_contrast
from scotoma.errors import SettingsError

LESION_KINDS = ("bright", "grey", "dark")


@dataclass(frozen=True)
class PhantomPatient:
    """Co-registered images with everything that is true about them.

    Attributes:
        t1, flair: (X, Y, Z) float32 whole numbers; 0 outside the brain, at least 1 inside.
        lesions: (X, Y, Z) uint8, 1 on lesions.
        lesion_kinds: (X, Y, Z) uint8, position of the lesion's kind in `LESION_KINDS` + 1, else 0.
        brain: (X, Y, Z) bool.
        csf, gm, wm: (X, Y, Z) float32 shares of tissue as they were before the lesions.
        confounders: (X, Y, Z) uint8, 0 or what else is bright there (`signal.CONFOUNDERS`); 0 on lesions.
        ventricle_distance: (X, Y, Z) float32 mm to the lateral ventricles.
        grid: MNI space, axes along RAS+.
    """

    t1: np.ndarray
    flair: np.ndarray
    lesions: np.ndarray
    lesion_kinds: np.ndarray
    brain: np.ndarray
    csf: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    confounders: np.ndarray
    ventricle_distance: np.ndarray
    grid: Grid


def make_patient(
    seed: int | Sequence[int],
    spacing: float = 2.0,
    kinds: Sequence[str] = ("bright",),
    load: float | None = None,
    deformation: float = 2.0,
) -> PhantomPatient:
    """Generate a patient, or a healthy control.

    Anatomy, contrast, noise and lesions draw from generators of their own: the same seed with other kinds,
    another load, or none, is the same brain in the same scanner.

    Args:
        seed: the patient.
        spacing: voxel size in mm, at least 1.
        kinds: kinds of lesion, each lesion one of them at random; empty for a control.
            "bright": bright in FLAIR, somewhat dark in T1. "grey": as grey matter in both, inside white
            matter. "dark": dark in T1 with blurred borders, FLAIR almost normal.
        load: lesion volume as a share of the brain, 0 < load <= .1; None for sizes and counts as found in
            patients with multiple sclerosis.
        deformation: root mean square displacement from the common space in mm.

    Raises:
        SettingsError: a spacing below 1 mm, an unknown kind, a load or a deformation outside its range.

    Example:
        >>> patient = make_patient(seed=1, spacing=4.0)
        >>> patient.t1.shape == patient.flair.shape == patient.grid.shape
        True
    """
    if not spacing >= 1:
        raise SettingsError(f"the phantom's atlas has 1 mm; a spacing of {spacing:g} mm adds nothing, use 1.")
    if unknown := set(kinds) - set(LESION_KINDS):
        raise SettingsError(
            f"no lesions of the kind '{sorted(unknown)[0]}'; there are {', '.join(LESION_KINDS)}."
        )
    if load is not None and not 0 < load <= 0.1:
        raise SettingsError(f"a lesion load is a share of the brain above 0 and up to .1, not {load:g}.")
    if not deformation >= 0:
        raise SettingsError(f"a deformation is 0 mm or more, not {deformation:g}.")

    streams = np.random.SeedSequence(seed).spawn(5)
    of_anatomy, of_contrast, of_scan, of_sizes, of_lesions = (np.random.default_rng(s) for s in streams)
    anatomy = make_anatomy(load_atlas(float(spacing)), of_anatomy, deformation)
    images, levels = tissue_contrast(anatomy, of_contrast)
    confounders = add_confounders(images, anatomy, of_contrast)

    lesions = []
    if kinds:
        voxel = spacing**3
        total = None if load is None else load * voxel * int(anatomy.brain.sum())
        volumes = draw_volumes(of_sizes, MIN_VOXELS * voxel, total)
        lesions = plant_lesions(anatomy, volumes, tuple(kinds), of_lesions)
        paint_lesions(images, levels, lesions, spacing, of_lesions)
    kind_map = np.zeros(anatomy.grid.shape, np.uint8)
    for lesion in lesions:
        kind_map[lesion.box][lesion.truth] = LESION_KINDS.index(lesion.kind) + 1
    confounders[kind_map > 0] = 0

    t1, flair = (scan(images[name], anatomy.brain, spacing, of_scan) for name in ("t1", "flair"))
    return PhantomPatient(
        t1=t1,
        flair=flair,
        lesions=(kind_map > 0).astype(np.uint8),
        lesion_kinds=kind_map,
        brain=anatomy.brain,
        csf=anatomy.csf,
        gm=anatomy.gm,
        wm=anatomy.wm,
        confounders=confounders,
        ventricle_distance=anatomy.ventricle_distance,
        grid=anatomy.grid,
    )
