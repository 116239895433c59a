"""The examples in the docstrings run, and the room's names are light to import."""

from __future__ import annotations

import doctest
import subprocess
import sys
from importlib import import_module

import pytest

MODULES = [
    "anomaly",
    "calibration",
    "elements",
    "lesions",
    "map_candidates",
    "map_tables",
    "matching",
    "policy",
    "segmentation",
    "statistics",
    "values",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = import_module(f"scotoma.evaluation.{name}")
    found = doctest.testmod(module, extraglobs={"np": import_module("numpy")})
    assert found.attempted
    assert not found.failed


def test_import_is_light() -> None:
    code = (
        "import sys; from scotoma.evaluation import aupro, lesion_detection, segmentation_metrics; "
        "sys.exit(bool({'torch', 'monai', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
