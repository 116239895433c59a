"""Candidate lesions: where they lie, how large they are, who comes first."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from scotoma.anomaly import find_candidates, write_candidates
from scotoma.data.grid import Grid
from scotoma.errors import InputError


def scene() -> tuple[np.ndarray, Grid]:
    scores = np.zeros((20, 24, 16))
    scores[2:4, 2:4, 2:4] = 6  # small and high: evidence 4 * sqrt(8) = 11.3
    scores[10:15, 10:15, 5:9] = 3.5  # large and low: 1.5 * sqrt(100) = 15
    scores[18, 20, 14] = 9  # a speck
    scores[5, 5, 12] = 2.0  # at the threshold, not above
    affine = np.array([[-2.0, 0, 0, 90], [0, 0, 3.0, -50], [0, 1.5, 0, 7], [0, 0, 0, 1]])
    return scores, Grid(scores.shape, affine)


def test_ranked_by_evidence_with_position_and_volume_in_mm():
    scores, grid = scene()
    found, labels = find_candidates(scores, grid, threshold=2.0)
    assert [c.rank for c in found] == [1, 2]
    large, small = found
    assert (large.voxels, small.voxels) == (100, 8)
    assert large.volume == pytest.approx(100 * 9.0)
    expected = grid.affine @ [12, 12, 6.5, 1]
    assert (large.x, large.y, large.z) == pytest.approx(tuple(expected[:3]))
    assert small.peak == small.mean == 6
    assert large.evidence == pytest.approx(15)
    assert (labels[10:15, 10:15, 5:9] == 1).all()
    assert (labels[2:4, 2:4, 2:4] == 2).all()
    assert (labels > 0).sum() == 108


def test_corners_connect():
    scores = np.zeros((6, 6, 6))
    for i in range(4):
        scores[i, i, i] = 5
    found, _ = find_candidates(scores, Grid.of_spacing((6, 6, 6), (1, 1, 1)))
    assert [c.voxels for c in found] == [4]


def test_pictures_give_row_and_column():
    scores = np.zeros((10, 12))
    scores[3:5, 6:10] = 4
    found, labels = find_candidates(scores, Grid.of_spacing((10, 12), (1, 1), "px"))
    assert (found[0].x, found[0].y, found[0].z) == (3.5, 7.5, 0)
    assert labels.shape == (10, 12)


def test_nothing_found_is_an_empty_table(tmp_path: Path):
    found, labels = find_candidates(np.zeros((4, 4, 4)), Grid.of_spacing((4, 4, 4), (1, 1, 1)))
    assert found == []
    assert not labels.any()
    write_candidates(tmp_path / "none.csv", found)
    assert (tmp_path / "none.csv").read_text().startswith("rank,label,x,y,z,voxels,volume")


def test_the_table_says_what_was_found(tmp_path: Path):
    found, _ = find_candidates(*scene(), threshold=2.0)
    write_candidates(tmp_path / "case.csv", found)
    with (tmp_path / "case.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["rank"]) for r in rows] == [1, 2]
    assert float(rows[0]["volume"]) == 900
    assert float(rows[1]["peak"]) == 6


def test_another_grid_is_refused():
    with pytest.raises(InputError, match="shape"):
        find_candidates(np.zeros((4, 4, 4)), Grid.of_spacing((4, 4, 5), (1, 1, 1)))
