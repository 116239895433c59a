"""Which cases train, validate and test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from scotoma.data.dataset import Case
from scotoma.errors import InputError, SettingsError
from scotoma.files import write_json
from scotoma.imperfections.cases import keep_cases


class Split(BaseModel):
    """Case ids by their part in a run."""

    model_config = ConfigDict(extra="forbid")

    train: list[str]
    validation: list[str]
    test: list[str] = []

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump())


def read_split(path: Path) -> Split:
    """Read a split from JSON with the lists train, validation and, if wanted, test.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    try:
        return Split.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: not a split of cases ({reason}); give lists train, validation and test."
        ) from None


def make_split(
    cases: Sequence[Case],
    *,
    test: float = 0.0,
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    labelled: float | Sequence[str] | None = None,
) -> Split:
    """Cut a list of cases by patient.

    The test set is the last share of the patients by name, so it is the same for every seed; the rest is
    shuffled by the seed and cut into folds.

    Args:
        cases: cases with a mask.
        test: share of patients set aside, in [0, 1).
        folds: number of folds; fewer when there are fewer patients.
        fold: the fold that validates.
        seed: order of the patients before cutting.
        labelled: share of the patients outside the test set to learn from, in (0, 1], or ids of the cases to
            learn from; the others are in no part.

    Raises:
        SettingsError: fewer than two patients, no such fold, or no such case.

    Example:
        >>> cases = [Case(id=f"c{n}", images=(), patient=f"p{n // 2}") for n in range(10)]
        >>> make_split(cases, test=0.2, folds=2).test
        ['c8', 'c9']
    """
    learnable, aside = _aside(cases, test, seed, labelled)
    rest = sorted({case.patient or case.id for case in learnable})
    folds = min(folds, len(rest))
    if not 0 <= fold < folds:
        raise SettingsError(
            f"split.fold = {fold}: with {len(rest)} patients folds are numbered 0 to {folds - 1}."
        )
    order = np.random.default_rng([seed, 4001]).permutation(len(rest))
    validating = {rest[n] for n in order[fold::folds]}
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": sorted(c.id for c in aside)}
    for case in sorted(learnable, key=lambda case: case.id):
        parts["validation" if (case.patient or case.id) in validating else "train"].append(case.id)
    return Split(**parts)


def count_folds(
    cases: Sequence[Case],
    *,
    test: float = 0.0,
    folds: int = 5,
    seed: int = 0,
    labelled: float | Sequence[str] | None = None,
) -> int:
    """How many folds `make_split` knows with these arguments.

    Raises:
        SettingsError: as there.
    """
    learnable, _ = _aside(cases, test, seed, labelled)
    return min(folds, len({case.patient or case.id for case in learnable}))


def _aside(
    cases: Sequence[Case], test: float, seed: int, labelled: float | Sequence[str] | None
) -> tuple[list[Case], list[Case]]:
    """Cases to learn from, of two patients at least, and those set aside."""
    patients = sorted({case.patient or case.id for case in cases})
    held_out = round(test * len(patients)) if test else 0
    if test and not held_out:
        held_out = 1
    rest = set(patients[: len(patients) - held_out])
    aside = [case for case in cases if (case.patient or case.id) not in rest]
    learnable = [case for case in cases if (case.patient or case.id) in rest]
    if isinstance(labelled, int | float):
        kept = set(keep_cases(rest, labelled, seed))
        learnable = [case for case in learnable if (case.patient or case.id) in kept]
    elif labelled is not None:
        for name in labelled:
            if name in {case.id for case in aside}:
                raise SettingsError(
                    f"split.labelled: case '{name}' is set aside as a test case (split.test)."
                )
            if name not in {case.id for case in learnable}:
                raise SettingsError(f"split.labelled: there is no case '{name}' with a mask.")
        learnable = [case for case in learnable if case.id in labelled]
    if len({case.patient or case.id for case in learnable}) < 2:
        raise SettingsError("training needs at least two patients to learn from, one of them to validate.")
    return learnable, aside


def check_split(split: Split, cases: Sequence[Case], source: object) -> None:
    """Refuse a split that names unknown cases or puts a patient on two sides.

    Raises:
        InputError: with the case or patient at fault.
    """
    patient_of = {case.id: case.patient or case.id for case in cases}
    home: dict[str, str] = {}
    for part in ("train", "validation", "test"):
        for name in getattr(split, part):
            if name not in patient_of:
                raise InputError(
                    f"{source}: case '{name}' is none of those that can be learned from; correct the name."
                )
            before = home.setdefault(patient_of[name], part)
            if before != part:
                raise InputError(f"{source}: patient '{patient_of[name]}' stands in {before} and in {part}.")
    if not split.train or not split.validation:
        raise InputError(f"{source}: both train and validation need at least one case.")
