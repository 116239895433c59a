"""Runs to report about, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_samples import write_pictures, write_run, write_volumes

from scotoma.data.labels import LabelMap

LESION = LabelMap.plain(["background", "lesion"])


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Path]]]:
    return write_volumes(tmp_path_factory.mktemp("some folder"))


@pytest.fixture(scope="session")
def run(volumes, tmp_path_factory) -> Path:
    """A run with a failed case."""
    labels, images = volumes
    broken = {"p9": f"{labels / 'p9.nii.gz'}: cannot be read as an image; replace the file."}
    return write_run(tmp_path_factory.mktemp("runs") / "ordinary", labels, images, LESION, failed=broken)


@pytest.fixture(scope="session")
def better_run(volumes, tmp_path_factory) -> Path:
    """Another recipe on the same cases, which misses less."""
    folder = tmp_path_factory.mktemp("runs") / "careful"
    return write_run(folder, *volumes, LESION, recipe="missing-lesions", missed=0.0, seed=1)


@pytest.fixture(scope="session")
def picture_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    label_map = LabelMap(classes=["background", "spot"], values={0: 0, 255: 1})
    return write_run(folder / "eyes", *write_pictures(folder), label_map, part="test")


@pytest.fixture(scope="session")
def class_run(tmp_path_factory) -> Path:
    """Two foreground classes, without probabilities."""
    folder = tmp_path_factory.mktemp("classes")
    label_map = LabelMap.plain(["background", "core", "rim"])
    labels, images = write_volumes(folder, classes=3, seed=5, cases=3)
    return write_run(folder / "two", labels, images, label_map, probabilities=False)
