"""From a folder of cases to a trained, validated run folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from scotoma.config import Settings, read_settings
from scotoma.data.check import CheckResult, check
from scotoma.data.dataset import Case, Dataset, open_dataset
from scotoma.data.examine import values_of
from scotoma.data.labels import LabelMap, propose_label_map
from scotoma.data.plan import Plan, choose_normalisation, make_plan, read_plan
from scotoma.data.preprocess import CachedCase, case_key, preprocess
from scotoma.data.splits import Split, check_split, count_folds, make_split, read_split
from scotoma.errors import InputError, ScotomaError, SettingsError
from scotoma.files import write_json
from scotoma.training.run import RunFolder

log = logging.getLogger("scotoma")

WARNINGS = 10
"""So many warnings about the data are repeated when training begins."""

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, all)."""


class FaultyDataError(ScotomaError):
    """The data has faults that training must not meet; `result` lists them."""

    def __init__(self, root: Path, result: CheckResult) -> None:
        errors = sum(fault.severity == "error" for fault in result.faults)
        super().__init__(
            f"{root}: {errors} fault{'s' * (errors != 1)} (listed above); correct them, or write a repaired"
            f" copy with `scotoma check {root} --fix FOLDER`."
        )
        self.result = result


def train(
    data: Path,
    settings: Settings,
    out: Path,
    *,
    plan_file: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    progress_bar: bool = False,
) -> Path:
    """Check, plan, preprocess, train, and evaluate on the validation cases.

    Args:
        data: folder of cases in any layout that `open_dataset` reads.
        settings: of the run; when resuming, those saved in the run count.
        out: run folder; must not hold a run yet, unless it is resumed.
        plan_file: a plan to use instead of deriving one.
        resume: go on with an interrupted run.
        progress: told about the stages.
        progress_bar: show the training loop's own bar.

    Returns:
        The run folder.

    Raises:
        FaultyDataError: `check` found errors.
        InputError, SettingsError: see their messages.
    """
    run = RunFolder(out)
    if not _first_process():
        _wait_for_first_process(run)
        settings = read_settings(run.config)
    elif run.config.is_file():
        if not resume:
            raise InputError(f"{out}: holds a run already; resume it with --resume or choose another folder.")
        settings = read_settings(run.config)
    _check_devices(settings)
    if plan_file is not None and not run.config.is_file():
        _refuse_overruled(settings, plan_file)
    if settings.anomaly is not None:
        from scotoma.training.anomaly import train_detector

        if plan_file is not None:
            raise SettingsError(f"--plan does not apply to '{settings.recipe}', which needs no plan.")
        return train_detector(data, settings, out, resume=resume, progress=progress)
    dataset = open_data(data, settings)
    if settings.split.fold == "all":
        from scotoma.evaluation.folds import merge_folds

        label_map, result = _checked(dataset, settings, progress)
        if settings.split.file is not None:
            raise SettingsError("split.fold = all cuts its own folds, so it cannot go with split.file.")
        labelled = [case for case in dataset.train if case.label is not None]
        cut = settings.split
        folds = count_folds(
            labelled, test=cut.test, folds=cut.folds, seed=settings.seed, labelled=cut.labelled
        )
        run.path.mkdir(parents=True, exist_ok=True)
        settings.save(run.config)
        # One plan, since only models that see an image the same way can be averaged.
        if plan_file is None and not run.plan.is_file():
            plan_for(dataset, settings, labelled, label_map, result).save(run.plan)
        plan_file = plan_file or run.plan
        trained: list[RunFolder] = []
        for fold in range(folds):
            one = settings.model_copy(deep=True)
            one.split.fold = fold
            if one.data.cache is None:
                one.data.cache = str((out / "cache").resolve())
            part = RunFolder(out / f"fold_{fold}")
            trained.append(part)
            if part.weights.is_file() and (part.validation / "evaluation.json").is_file():
                continue
            log.info("fold %d", fold)
            _train_one(
                dataset,
                one,
                part,
                plan_file,
                part.config.is_file(),
                progress,
                progress_bar,
                label_map,
                result,
            )
        if _first_process():
            merge_folds([part.validation for part in trained], run.validation)
        return out
    finished = run.weights.is_file() and (run.validation / "evaluation.json").is_file()
    if resume and finished:
        log.info("%s has finished already", out)
        return out
    label_map, result = _checked(dataset, settings, progress)
    _train_one(dataset, settings, run, plan_file, resume, progress, progress_bar, label_map, result)
    return out


def _check_devices(settings: Settings) -> None:
    import torch

    wanted, there = settings.training.devices, torch.cuda.device_count()
    if 0 < there < wanted:
        raise SettingsError(
            f"training.devices: {wanted} asked for, but this machine has {there} GPU{'s' * (there != 1)}; ask"
            " for fewer, or set CUDA_VISIBLE_DEVICES= (empty) to train on processors."
        )


def _refuse_overruled(settings: Settings, plan_file: Path) -> None:
    """A plan that is given decides; settings of what it decides would be ignored in silence."""
    usual = Settings()
    for section in ("plan", "network"):
        given = getattr(settings, section)
        for name in type(given).model_fields:
            applied = section == "network" and name in ("prior_bias", "feature_selection")
            if not applied and getattr(given, name) != getattr(getattr(usual, section), name):
                raise SettingsError(
                    f"{section}.{name} = {getattr(given, name)!r}: {plan_file} decides that; change it there."
                )


def open_data(data: Path, settings: Settings) -> Dataset:
    """Open a folder of cases as the settings describe it."""
    where = settings.data
    return open_dataset(data, where.labels, where.channels, where.patient_pattern)


def given_label_map(settings: Settings, dataset: Dataset) -> LabelMap | None:
    """The label map that the settings spell out, None when it is left to `check`.

    Raises:
        SettingsError: a map that is incomplete or contradicts itself.
    """
    where = settings.data
    if where.label_map is None and not where.instances:
        if where.classes is not None:
            return _label_map(classes=where.classes, values={n: n for n in range(len(where.classes))})
        return None
    if where.instances:
        return _label_map(classes=where.classes or ["background", "object"], instances=True)
    assert where.label_map is not None
    count = max([c for c in where.label_map.values() if c != "ignore"], default=0) + 1
    names = where.classes
    if names is None:
        known = dataset.label_names or {}
        first = {c: v for v, c in reversed(list(where.label_map.items())) if c != "ignore"}
        names = ["background", *[known.get(first.get(c, -1), f"class {c}") for c in range(1, count)]]
    return _label_map(classes=names, values=where.label_map)


def label_map_of(dataset: Dataset, settings: Settings) -> LabelMap:
    """The label map of a dataset: as the settings spell it out, else as its masks suggest.

    Raises:
        InputError: no masks.
    """
    given = given_label_map(settings, dataset)
    if given is not None:
        return given
    masks = [case.label for case in (*dataset.train, *dataset.test) if case.label is not None]
    if not masks:
        raise InputError(f"{dataset.root}: no masks there; add a folder labels/ or masks/.")
    values = {}
    if not dataset.label_names:
        values = {str(path): found for path in masks if (found := values_of(path)) is not None}
    return propose_label_map(values, dataset.label_names)[0]


def _label_map(**content: object) -> LabelMap:
    try:
        return LabelMap.model_validate(content)
    except ValidationError as error:
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SettingsError(f"data.label_map: {text}.") from None


def _checked(dataset: Dataset, settings: Settings, progress: Progress | None) -> tuple[LabelMap, CheckResult]:
    """Check the data; refuse it when it has errors."""
    result = check(
        dataset,
        label_map=given_label_map(settings, dataset),
        annotated=settings.data.annotated or None,
        tolerance_mm=settings.data.tolerance_mm,
        progress=(lambda done, of: progress("checking", done, of)) if progress else None,
    )
    if result.errors:
        raise FaultyDataError(dataset.root, result)
    if result.label_map is None:
        raise InputError(f"{dataset.root}: no masks to learn from; add a folder labels/ or masks/.")
    return result.label_map, result


def _train_one(
    dataset: Dataset,
    settings: Settings,
    run: RunFolder,
    plan_file: Path | None,
    resume: bool,
    progress: Progress | None,
    progress_bar: bool,
    label_map: LabelMap,
    result: CheckResult,
) -> None:
    from scotoma.training.extractor import make_extractor, needs_extractor
    from scotoma.training.fit import check_module, fit, loader_workers, time_steps

    cases = {case.id: case for case in dataset.train if case.label is not None}
    split = split_cases(run, settings, list(cases.values()))
    plan = _plan(run, dataset, settings, plan_file, [cases[name] for name in split.train], label_map, result)
    cache = Path(settings.data.cache) if settings.data.cache else run.path / "cache"
    workers = loader_workers(settings.training.workers)
    used = [cases[n] for n in (*split.train, *split.validation)]
    if _first_process():
        check_module(settings, plan)
        if run.config.is_file():
            check_same_data(run, dataset.root, _data_hash(settings, plan, used))
        _describe(settings, result, split, plan)

    def told(done: int, of: int) -> None:
        if progress is not None:
            progress("preprocessing", done, of)

    def prepared(names: list[str]) -> list[CachedCase]:
        return preprocess(
            [cases[name] for name in names],
            plan,
            cache,
            settings.data.annotated,
            workers if len(names) > 50 else 0,
            told,
        )

    train_cases, validation_cases = prepared(split.train), prepared(split.validation)
    if needs_extractor(settings) and _first_process() and not run.config.is_file():
        log.info("training the content loss's extractor on the images")
        make_extractor(settings, plan, train_cases, run.extractor)
    if settings.training.minutes is not None and not run.config.is_file():
        seconds = time_steps(settings, plan, train_cases, run.extractor)
        steps = max(20, int(settings.training.minutes * 60 / seconds))
        # Down to whole epochs, which `fit` would otherwise fill up, and be late.
        settings.training.steps = steps - steps % min(settings.training.epoch_steps, steps)
        settings.training.minutes = None
        log.info("a step takes %.3f s: %d steps", seconds, settings.training.steps)
    if _first_process():
        run.path.mkdir(parents=True, exist_ok=True)
        plan.save(run.plan)
        split.save(run.splits)
        assert result.fingerprint is not None
        write_json(run.fingerprint, result.fingerprint.model_dump(mode="json"))
        write_environment(run, settings, _data_hash(settings, plan, used), len(used))
        # Last, since it tells the other processes and --resume that everything before it is there.
        settings.save(run.config)
    fit(run, settings, plan, train_cases, validation_cases, resume=resume, progress_bar=progress_bar)
    if _first_process():
        _validate(run, settings, dataset.root, [cases[name] for name in split.validation], progress)


def split_cases(run: RunFolder, settings: Settings, cases: list[Case]) -> Split:
    """The run's split if it has one, else the one the settings name, else a new one.

    Raises:
        InputError, SettingsError: a split that does not fit the cases.
    """
    wanted = settings.split
    if run.config.is_file() and run.splits.is_file():
        split, source = read_split(run.splits), str(run.splits)
    elif wanted.file is not None:
        if wanted.labelled is not None:
            raise SettingsError("split.labelled: the split in split.file says already which cases to use.")
        split, source = read_split(Path(wanted.file)), wanted.file
    else:
        assert wanted.fold != "all"
        return make_split(
            cases,
            test=wanted.test,
            folds=wanted.folds,
            fold=wanted.fold,
            seed=settings.seed,
            labelled=wanted.labelled,
        )
    check_split(split, cases, source)
    return split


def _plan(
    run: RunFolder,
    dataset: Dataset,
    settings: Settings,
    plan_file: Path | None,
    cases: list[Case],
    label_map: LabelMap,
    result: CheckResult,
) -> Plan:
    if run.config.is_file() and run.plan.is_file():
        return read_plan(run.plan)
    if plan_file is not None:
        plan = read_plan(plan_file)
        if settings.network.feature_selection:  # what makes the recipe, whatever the plan was made for
            plan.network.feature_selection = settings.network.feature_selection
        if plan.label_map != label_map:
            raise SettingsError(
                f"{plan_file}: its label map differs from the data's ({', '.join(label_map.classes)});"
                " make the plan anew or set data.label_map to the plan's."
            )
        return plan
    return plan_for(dataset, settings, cases, label_map, result)


def plan_for(
    dataset: Dataset, settings: Settings, cases: list[Case], label_map: LabelMap, result: CheckResult
) -> Plan:
    """Derive a plan from training cases and the fingerprint of the data."""
    import torch

    found = result.fingerprint
    if found is None:
        raise InputError("no case is left to plan from; correct the faults that `scotoma check` lists.")
    named = dataset.channel_names
    count = found.channels
    default = ["red", "green", "blue"] if found.kind == "colour" and count == 3 else None
    names = (
        list(named) if named and len(named) == count else default or [f"channel {n}" for n in range(count)]
    )
    training = {case.id for case in cases}
    return make_plan(
        [case.grid for case in found.cases if case.id in training],
        choose_normalisation(found, settings.plan.normalisation),
        names,
        label_map,
        settings,
        accelerator=torch.cuda.is_available(),
    )


def write_environment(run: RunFolder, settings: Settings, data_hash: str, cases: int) -> None:
    """Write versions, machine, seed, and what the run learned from."""
    from scotoma.training.environment import machine, versions

    content = {
        "versions": versions(),
        "machine": machine(),
        "seed": settings.seed,
        "data_hash": data_hash,
        "cases": cases,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(run.environment, content)


def check_same_data(run: RunFolder, root: Path, data_hash: str) -> None:
    """Refuse to go on with other data than a run began with.

    Raises:
        InputError: the images or masks of the run's cases have changed.
    """
    if not run.environment.is_file():
        return
    before = json.loads(run.environment.read_text(encoding="utf-8")).get("data_hash")
    if before not in (None, data_hash):
        raise InputError(
            f"{root}: not the images and masks that {run.path} began with; resume with those, or train in"
            " another folder."
        )


def _describe(settings: Settings, result: CheckResult, split: Split, plan: Plan) -> None:
    """Say what the run makes of the data."""
    for line in [fault.message for fault in result.warnings][:WARNINGS]:
        log.warning("warning: %s", line)
    if len(result.warnings) > WARNINGS:
        log.warning("... and %d more warnings; `scotoma check` lists them", len(result.warnings) - WARNINGS)
    if result.recipe not in (None, settings.recipe):
        log.info("recipe: %s; `check` suggests %s - %s", settings.recipe, result.recipe, result.reason)
    log.info("masks: %s", plan.label_map.describe())
    log.info(
        "cases: %d train, %d validate, %d set aside", len(split.train), len(split.validation), len(split.test)
    )
    net = plan.network
    log.info(
        "plan: %s, patch %s, batch %d, %s with %s features",
        plan.kind,
        " x ".join(map(str, plan.patch)),
        plan.batch,
        net.architecture,
        "-".join(map(str, net.features)),
    )
    if "network.depth" in plan.reasons:
        log.warning("network.depth: %s", plan.reasons["network.depth"])


def _data_hash(settings: Settings, plan: Plan, cases: list[Case]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for case in cases:
        digest.update(case_key(case, plan, settings.data.annotated.get(case.id)).encode())
    return digest.hexdigest()


def _validate(
    run: RunFolder, settings: Settings, root: Path, cases: list[Case], progress: Progress | None
) -> None:
    """Predict the validation cases whole and evaluate them."""
    from scotoma.evaluation.evaluate import evaluate
    from scotoma.prediction.predict import Predictor, predict_cases

    predict_cases(
        Predictor.from_run(run.path),
        cases,
        run.validation,
        probabilities=True,
        progress=(lambda done, of: progress("predicting validation cases", done, of)) if progress else None,
    )
    evaluate(
        run.validation,
        root,
        out=run.validation,
        labels=settings.data.labels,
        seed=settings.seed,
        progress=(lambda done, of: progress("evaluating", done, of)) if progress else None,
    )


def _first_process() -> bool:
    """Whether this is the process that prepares the data (rank 0 of torchrun, SLURM or Lightning)."""
    return _rank() == 0


def _rank() -> int:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _wait_for_first_process(run: RunFolder, seconds: float = 24 * 3600) -> None:
    """Under torchrun and SLURM all processes start at once; the others wait for the prepared run folder."""
    deadline = time.monotonic() + seconds
    while not run.config.is_file():
        if time.monotonic() > deadline:
            raise InputError(f"{run.path}: the first process never finished preparing the data; see its log.")
        time.sleep(0.5)
