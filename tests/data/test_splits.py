"""Splits: by patient, test set fixed, folds that cover everything once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scotoma.data.dataset import Case
from scotoma.data.splits import check_split, make_split, read_split
from scotoma.errors import InputError, SettingsError


def cases_of(patients):
    return [Case(id=f"c{n:03}", images=(), patient=f"p{p:03}") for n, p in enumerate(patients)]


@given(
    patients=st.lists(st.integers(0, 30), min_size=8, max_size=60),
    seed=st.integers(0, 5),
    test=st.sampled_from([0.0, 0.2]),
)
def test_no_patient_on_two_sides_and_every_case_somewhere(patients, seed, test):
    cases = cases_of(patients)
    if len(set(patients)) < 4:
        return
    validated = []
    folds = min(3, len(set(patients)) - 1)
    for fold in range(folds):
        split = make_split(cases, test=test, folds=folds, fold=fold, seed=seed)
        check_split(split, cases, "split")
        assert sorted(split.train + split.validation + split.test) == [c.id for c in cases]
        validated += split.validation
    assert sorted(validated + split.test) == [c.id for c in cases]
    assert make_split(cases, test=test, folds=folds, fold=0, seed=seed + 1).test == split.test


def test_the_test_set_is_the_last_fifth_by_name():
    cases = cases_of(range(260))
    assert make_split(cases, test=0.2).test == [f"c{n:03}" for n in range(208, 260)]


def test_fewer_patients_than_folds():
    assert make_split(cases_of([0, 1, 2]), folds=5).validation
    with pytest.raises(SettingsError, match="at least two patients"):
        make_split(cases_of([0, 0, 0]))
    with pytest.raises(SettingsError, match="numbered 0 to 2"):
        make_split(cases_of([0, 1, 2]), folds=5, fold=4)


def test_a_split_from_a_file_is_checked(tmp_path):
    cases = cases_of([0, 0, 1, 2])
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["c000"], "validation": ["c001"]}))
    with pytest.raises(InputError, match="patient 'p000' stands in train and in validation"):
        check_split(read_split(path), cases, path)
    path.write_text(json.dumps({"train": ["c000"], "validation": ["c009"]}))
    with pytest.raises(InputError, match="c009"):
        check_split(read_split(path), cases, path)
    path.write_text("[]")
    with pytest.raises(InputError, match="not a split"):
        read_split(path)
