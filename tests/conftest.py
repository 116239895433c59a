"""Shared by all tests: where real data lies, and quiet threads."""

from __future__ import annotations

import os
from pathlib import Path

# One thread per test process, and in what it starts: several processes share the processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from scotoma.training.environment import hide_broken_torchvision
from small_data import write_blobs

hide_broken_torchvision()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SCOTOMA_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real data here (set SCOTOMA_DATA)")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 64 x 64 grey pictures with masks 0/255; read only."""
    return write_blobs(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six 24^3 volumes with masks; read only."""
    return write_blobs(tmp_path_factory.mktemp("data") / "volumes", cases=6, size=24, volumes=True)
