"""Splits: by patient, test set fixed, folds that cover everything once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scotoma.data.dataset import Case
from scotoma.data.splits import check_split, count_folds, make_split, read_split
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


@pytest.mark.parametrize("labelled", [0.25, 0.5, 1.0])
def test_a_share_of_the_patients_to_learn_from(labelled):
    cases = cases_of([n // 2 for n in range(80)])
    whole = make_split(cases, test=0.2)
    few = make_split(cases, test=0.2, labelled=labelled)
    assert few.test == whole.test
    check_split(few, cases, "split")
    assert len(few.train) + len(few.validation) == 64 * labelled
    more = make_split(cases, test=0.2, labelled=min(1.0, 2 * labelled))
    assert {*few.train, *few.validation} <= {*more.train, *more.validation}
    other = make_split(cases, test=0.2, labelled=labelled, seed=1)
    assert labelled == 1 or {*few.train, *few.validation} != {*other.train, *other.validation}


def test_named_cases_to_learn_from():
    cases = cases_of([0, 0, 1, 2, 3])
    named = ["c000", "c002", "c003"]
    split = make_split(cases, labelled=named, folds=2)
    assert sorted(split.train + split.validation) == named
    assert count_folds(cases, labelled=named, folds=5) == 3
    assert count_folds(cases, test=0.25) == 3
    with pytest.raises(SettingsError, match="'c004' is set aside as a test case"):
        make_split(cases, test=0.25, labelled=["c000", "c004"])
    with pytest.raises(SettingsError, match="no case 'c9' with a mask"):
        make_split(cases, labelled=["c000", "c9"])
    with pytest.raises(SettingsError, match="at least two patients"):
        make_split(cases, labelled=["c000", "c001"])
    with pytest.raises(SettingsError, match="share above 0 and up to 1"):
        make_split(cases, labelled=1.5)


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
