"""From a folder of normal cases to a fitted anomaly detector: `train` for recipes without labels."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scotoma.anomaly.cache import prepare_cases
from scotoma.anomaly.case import Case
from scotoma.anomaly.controls import ControlScores
from scotoma.anomaly.detector import PatientAnomalyDetector
from scotoma.anomaly.preparation import (
    Preparation,
    make_preparation,
    read_preparation,
    write_reference,
)
from scotoma.anomaly.settings import DetectorSettings, detector_settings, training_settings
from scotoma.anomaly.storage import save_detector
from scotoma.anomaly.train import TrainingHistory, TrainingSettings, new_autoencoder, train_autoencoder
from scotoma.config import Settings
from scotoma.data.check import CheckResult, check
from scotoma.data.dataset import Case as Files
from scotoma.data.dataset import Dataset
from scotoma.data.image import Image
from scotoma.data.preprocess import add_files
from scotoma.data.splits import Split
from scotoma.errors import InputError, SettingsError
from scotoma.files import write_json, write_text
from scotoma.training.run import RunFolder
from scotoma.training.train import (
    FaultyDataError,
    Progress,
    check_same_data,
    given_label_map,
    open_data,
    split_cases,
    write_environment,
)

log = logging.getLogger("scotoma")

LEAST_CASES = 3
"""Normal patients: two to make pairs of, one to validate."""

UNLIKE = 1.0
"""How much rarer, as a power of ten, held-out normal cases may look than they should before a warning."""

TIMED_STEPS = 20

_OTHERS = ("plan", "network", "training", "prediction")
_TAKEN = {"training.minutes"}


def train_detector(
    data: Path, settings: Settings, out: Path, *, resume: bool = False, progress: Progress | None = None
) -> Path:
    """Check, prepare, train the auto-encoder, fit the detector, and score held-out normal cases.

    Args:
        data: folder of cases in any layout that `open_dataset` reads; those with lesions are left out.
        settings: of the run, with its section `anomaly`.
        out: run folder.
        resume: go on with an interrupted run.
        progress: told about the stages.

    Returns:
        The run folder.

    Raises:
        FaultyDataError: `check` found errors.
        InputError, SettingsError: see their messages.
    """
    _refuse_unused(settings)
    run = RunFolder(out)
    if resume and run.weights.is_file() and (run.validation / "prediction.json").is_file():
        log.info("%s has finished already", out)
        return out
    dataset = open_data(data, settings)
    result = _checked(dataset, settings, progress)
    assert result.fingerprint is not None
    normal = _normal_cases(dataset, result)
    split = split_cases(run, settings, normal)
    cases = {case.id: case for case in normal}
    how, reference = _preparation(run, settings, dataset, result, split, cases)

    def prepared(names: Sequence[str], stage: str) -> list[Case]:
        def told(done: int, of: int) -> None:
            if progress is not None:
                progress(stage, done, of)

        cache = Path(settings.data.cache) if settings.data.cache else run.path / "cache"
        return prepare_cases([cases[n] for n in names], how, reference, cache, told)

    controls = prepared(split.train, "preparing normal cases")
    held_out = prepared(split.validation, "preparing held-out cases")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    used = [cases[n] for n in (*split.train, *split.validation)]
    if run.config.is_file():
        check_same_data(run, dataset.root, _data_hash(how, used))
    else:
        _spend(settings, how, controls, device)
        run.path.mkdir(parents=True, exist_ok=True)
        split.save(run.splits)
        write_json(run.fingerprint, result.fingerprint.model_dump(mode="json"))
        write_environment(run, settings, _data_hash(how, used), len(used))
        # Last, since it tells --resume that everything before it is there.
        settings.save(run.config)
    autoencoder = _autoencoder(settings, how)
    train_autoencoder(
        autoencoder,
        controls,
        held_out,
        _training(settings, how),
        seed=settings.seed,
        device=device,
        checkpoint=run.last,
        progress=(lambda done, of, _: progress("training", done, of)) if progress else None,
        on_epoch=lambda history: _write_metrics(run, history, settings, len(controls)),
    )
    if progress:
        progress("fitting the detector", 0, 0)
    detector = PatientAnomalyDetector(
        autoencoder, _detector(settings), scaling=how.scaling, seed=settings.seed, device=device
    )
    detector.fit(controls, registered=how.registered)
    _score_held_out(run, settings, detector, how, reference, [cases[n] for n in split.validation], progress)
    return out


def _refuse_unused(settings: Settings) -> None:
    """Settings of training with labels mean nothing here; ignoring them in silence would mislead."""
    default = Settings()
    for section in _OTHERS:
        given, usual = getattr(settings, section), getattr(default, section)
        for name in type(given).model_fields:
            if getattr(given, name) != getattr(usual, name) and f"{section}.{name}" not in _TAKEN:
                raise SettingsError(
                    f"{section}.{name} does not apply to '{settings.recipe}', which learns without labels:"
                    " its settings are anomaly.* (epochs, locations, batch ...), seed, data.*, split.* and"
                    " training.minutes."
                )
    if settings.objective:
        raise SettingsError(
            f"objective.* does not apply to '{settings.recipe}', which learns without labels."
        )
    if settings.split.fold == "all":
        raise SettingsError(
            f"split.fold = all: detectors are not averaged, so '{settings.recipe}' trains one; choose a fold."
        )


def _checked(dataset: Dataset, settings: Settings, progress: Progress | None) -> CheckResult:
    """Check the data; refuse it when it has errors."""
    result = check(
        dataset,
        label_map=given_label_map(settings, dataset),
        annotated=settings.data.annotated or None,
        tolerance_mm=settings.data.tolerance_mm,
        progress=(lambda done, of: progress("checking", done, of)) if progress else None,
        masks_needed=False,
    )
    if result.errors:
        raise FaultyDataError(dataset.root, result)
    return result


def _normal_cases(dataset: Dataset, result: CheckResult) -> list[Files]:
    """Cases without a mask or with an empty one."""
    assert result.fingerprint is not None
    lesions = set()
    for case in result.fingerprint.cases:
        voxels = list((case.voxels or {}).values())
        if sum(voxels[1:]):
            lesions.add(case.id)
    normal = [case for case in dataset.train if case.id not in lesions]
    unlabelled = sum(case.label is None for case in normal)
    log.info(
        "%d normal cases (%d without a mask, %d with an empty one)%s",
        len(normal),
        unlabelled,
        len(normal) - unlabelled,
        f"; {len(lesions)} with something in their mask are left out" if lesions else "",
    )
    patients = {case.patient or case.id for case in normal}
    if len(patients) < LEAST_CASES:
        raise InputError(
            f"{dataset.root}: {len(patients)} normal patient(s), without a mask or with an empty one; at"
            f" least {LEAST_CASES} are needed, one of them to validate."
        )
    return normal


def _preparation(
    run: RunFolder,
    settings: Settings,
    dataset: Dataset,
    result: CheckResult,
    split: Split,
    cases: dict[str, Files],
) -> tuple[Preparation, Image | None]:
    from scotoma.prediction.anomaly import read_reference

    if run.config.is_file() and run.preparation.is_file():
        how = read_preparation(run.preparation)
        return how, read_reference(run, how)
    assert settings.anomaly is not None
    assert result.fingerprint is not None
    count = result.fingerprint.channels
    known = list(dataset.channel_names or ())
    colours = ["red", "green", "blue"] if result.fingerprint.kind == "colour" and count == 3 else None
    channels = known if len(known) == count else colours or [f"channel {n}" for n in range(count)]
    used = [*split.train, *split.validation]
    how = make_preparation(settings.anomaly, result.fingerprint, used, channels)
    run.path.mkdir(parents=True, exist_ok=True)
    reference = write_reference(run.reference, cases[split.train[0]], how) if how.align else None
    how.save(run.preparation)
    return how, reference


def _autoencoder(settings: Settings, how: Preparation) -> Any:
    assert settings.anomaly is not None
    wanted = settings.anomaly
    return new_autoencoder(
        len(how.channels),
        settings.seed,
        patch=wanted.patch,
        filters=wanted.filters,
        latent=wanted.latent,
        dimensions=wanted.dimensions,
    )


def _spend(settings: Settings, how: Preparation, controls: list[Case], device: str) -> None:
    """Turn a budget of minutes into epochs, by timing some steps."""
    if settings.training.minutes is None:
        return
    assert settings.anomaly is not None
    wanted = _training(settings, how)
    few = max(1, TIMED_STEPS * wanted.batch // len(controls))
    start = time.monotonic()
    train_autoencoder(
        _autoencoder(settings, how),
        controls,
        [replace(controls[0], name="timed")],
        replace(wanted, epochs=1, locations=few),
        device=device,
    )
    seconds = (time.monotonic() - start) * wanted.locations / few
    settings.anomaly.epochs = max(1, int(settings.training.minutes * 60 / seconds))
    settings.training.minutes = None
    log.info("an epoch takes %.1f s: %d epochs", seconds, settings.anomaly.epochs)


def _write_metrics(run: RunFolder, history: TrainingHistory, settings: Settings, cases: int) -> None:
    assert settings.anomaly is not None
    steps = -(-cases * settings.anomaly.locations // settings.anomaly.batch)
    rows = []
    for epoch, (train, validation, seconds) in enumerate(
        zip(history.train, history.validation, history.seconds, strict=True)
    ):
        row: dict[str, Any] = {"epoch": epoch, "step": (epoch + 1) * steps, "seconds": round(seconds, 1)}
        for part, terms in (("train", train), ("validation", validation)):
            row |= {f"{part}_{name}": float(f"{value:.6g}") for name, value in terms.items()}
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(run.metrics, text.getvalue())


def _score_held_out(
    run: RunFolder,
    settings: Settings,
    detector: PatientAnomalyDetector,
    how: Preparation,
    reference: Image | None,
    cases: list[Files],
    progress: Progress | None,
) -> None:
    """Predict the held-out normal cases; the thresholds come from their scores."""
    from scotoma.prediction.anomaly import METHOD, AnomalyPredictor
    from scotoma.prediction.predict import predict_each

    assert settings.anomaly is not None
    predictor = AnomalyPredictor.of(settings, detector, how, reference, None, str(run.path))
    scores: dict[str, list[np.ndarray]] = {}
    images = {}
    for done, case in enumerate(cases):
        if progress:
            progress("scoring held-out cases", done, len(cases))
        prepared = predictor.prepare(case)
        maps = predictor.score(prepared, baselines=True)
        predictor.write_maps(case, prepared, maps, run.validation)
        images[case.id] = prepared.image
        counted = prepared.case.mask
        if prepared.case.excluded is not None:
            counted = counted & ~prepared.case.excluded
        for name, values in maps.items():
            scores.setdefault(name, []).append(values[counted])
    predictor.controls = ControlScores.of([case.id for case in cases], scores)
    predictor.controls.save(run.controls)
    compare_held_out(
        predictor.controls.threshold(METHOD, settings.anomaly.threshold), settings.anomaly.threshold
    )
    save_detector(run.weights, detector)
    predict_each(
        cases,
        run.validation,
        predictor.heading(baselines=True),
        lambda case: predictor.write_findings(case, images[case.id], run.validation, baselines=True),
    )
    if progress:
        progress("scoring held-out cases", len(cases), len(cases))


def compare_held_out(threshold: float, quantile: float) -> None:
    """Warn where scores do not mean for held-out normal cases what they mean for the others."""
    expected = -np.log10(1 - quantile)
    if threshold > expected + UNLIKE:
        log.warning(
            "Held-out normal cases score much higher than those learned from (%g %% quantile %.1f, where %.1f"
            " is expected): there are too few normal cases, or they are too unlike each other. The threshold"
            " follows the held-out ones, but a score is no longer how rare it is; give more normal cases, or"
            " set anomaly.registered=no to leave out the comparison by location.",
            100 * quantile,
            threshold,
            expected,
        )


def _data_hash(how: Preparation, cases: list[Files]) -> str:
    digest = hashlib.blake2b(how.model_dump_json().encode(), digest_size=16)
    for case in cases:
        add_files(digest, case.images)
    return digest.hexdigest()


def _training(settings: Settings, how: Preparation) -> TrainingSettings:
    assert settings.anomaly is not None
    return training_settings(settings.anomaly, how.registered)


def _detector(settings: Settings) -> DetectorSettings:
    assert settings.anomaly is not None
    return detector_settings(settings.anomaly)
