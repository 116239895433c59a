"""A folder of phantom patients in nnU-Net's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from scotoma.data.grid import Grid
from scotoma.data.phantom.patient import PhantomPatient, make_patient
from scotoma.errors import InputError, SettingsError
from scotoma.files import replacing, write_json

_ROLES = ("patient", "control", "test")


def generate_phantom(
    out: Path,
    patients: int,
    controls: int = 0,
    test_patients: int = 0,
    spacing: float = 2.0,
    seed: int = 0,
    lesion_kinds: Sequence[str] = ("bright",),
    load: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    deformation: float = 2.0,
) -> Path:
    """Write phantom patients and controls as a dataset.

        out/dataset.json
        out/imagesTr/patient_000_0000.nii.gz   T1      out/labelsTr/patient_000.nii.gz
        out/imagesTr/patient_000_0001.nii.gz   FLAIR
        out/imagesTr/control_000_0000.nii.gz   ...     out/labelsTr/control_000.nii.gz   nothing in it
        out/imagesTs/test_000_0000.nii.gz      ...     out/labelsTs/test_000.nii.gz
        out/phantom.json                       what was asked for, and the lesions of each case

    Images and masks are int16 and uint8 on one grid in MNI space. A case depends on the seed, its role and
    its number alone, not on how many there are: a larger folder holds a smaller one.

    Args:
        out: folder to write; it must not exist or be empty.
        patients: number with lesions, to train on.
        controls: number without lesions, to train on.
        test_patients: number with lesions, set aside.
        spacing: voxel size in mm, at least 1.
        seed: of everything random.
        lesion_kinds: see `make_patient`.
        load: lesion volume as a share of the brain; None for the sizes of real patients.
        progress: called with the number of cases written and of all cases.
        deformation: see `make_patient`.

    Returns:
        `out`.

    Raises:
        SettingsError: a negative number of cases, none at all, or what `make_patient` refuses.
        InputError: a folder with something in it.
    """
    out = Path(out)
    counts = dict(zip(_ROLES, (patients, controls, test_patients), strict=True))
    if min(counts.values()) < 0 or not any(counts.values()):
        raise SettingsError("a phantom dataset needs at least one patient, control or test patient.")
    if not lesion_kinds and patients + test_patients:
        raise SettingsError("phantom patients need at least one kind of lesion; ask for controls instead.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: there is something here already; choose a new folder or empty this one.")

    cases: dict[str, dict[str, float]] = {}
    for role, count in counts.items():
        for number in range(count):
            kinds = () if role == "control" else tuple(lesion_kinds)
            patient = make_patient(
                (seed, _ROLES.index(role), number), spacing, kinds, load, deformation=deformation
            )
            name = f"{role}_{number:03d}"
            _write(out, "Ts" if role == "test" else "Tr", name, patient)
            cases[name] = _summary(patient)
            if progress is not None:
                progress(len(cases), sum(counts.values()))
    settings = {
        "patients": patients, "controls": controls, "test_patients": test_patients, "spacing": spacing,
        "seed": seed, "lesion_kinds": list(lesion_kinds), "load": load, "deformation": deformation,
    }  # fmt: skip
    write_json(out / "phantom.json", {"settings": settings, "cases": cases})
    # Last, since it is what makes a folder a dataset.
    write_json(
        out / "dataset.json",
        {
            "name": "brain phantom",
            "channel_names": {"0": "T1", "1": "FLAIR"},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": patients + controls,
            "file_ending": ".nii.gz",
        },
    )
    return out


def _write(out: Path, part: str, name: str, patient: PhantomPatient) -> None:
    for channel, image in enumerate((patient.t1, patient.flair)):
        file = out / f"images{part}" / f"{name}_{channel:04d}.nii.gz"
        _write_volume(file, image.astype(np.int16), patient.grid)
    _write_volume(out / f"labels{part}" / f"{name}.nii.gz", patient.lesions, patient.grid)


def _write_volume(file: Path, array: np.ndarray, grid: Grid) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(array, grid.affine)
    image.set_qform(grid.affine, code="mni")
    image.set_sform(grid.affine, code="mni")
    image.header.set_xyzt_units("mm")
    with replacing(file) as temporary:
        nib.save(image, temporary)


def _summary(patient: PhantomPatient) -> dict[str, float]:
    import cc3d

    count = int(np.max(cc3d.connected_components(patient.lesions, connectivity=26)))
    volume = float(patient.lesions.sum()) * patient.grid.voxel_volume
    return {
        "lesions": count,
        "lesion_volume_mm3": round(volume, 1),
        "brain_volume_mm3": round(float(patient.brain.sum()) * patient.grid.voxel_volume, 1),
    }
