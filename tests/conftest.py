"""Shared by all tests: where real data lies, and quiet threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scotoma.training.environment import hide_broken_torchvision

hide_broken_torchvision()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SCOTOMA_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real data here (set SCOTOMA_DATA)")
    return folder
