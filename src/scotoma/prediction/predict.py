"""From images to a folder of predicted masks, each on its image's own grid."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scotoma import __version__
from scotoma.data.dataset import Case, list_images, open_dataset
from scotoma.data.image import (
    Image,
    mask_extension,
    probabilities_extension,
    read_image,
    write_mask,
    write_probabilities,
)
from scotoma.data.plan import Plan
from scotoma.data.preprocess import prepare_image
from scotoma.data.resampling import from_canonical
from scotoma.data.splits import read_split
from scotoma.errors import InputError, ScotomaError, SettingsError
from scotoma.files import write_json
from scotoma.networks.segmenter import Segmenter
from scotoma.prediction.restore import ProbabilityStore, restore
from scotoma.prediction.sliding_window import Model, predict_slabs, slab_axis

log = logging.getLogger("scotoma")

_SHAPING = (
    "pictures",
    "first_axis",
    "spacing",
    "patch",
    "context",
    "channel_names",
    "normalisation",
    "label_map",
)
PRECISION = {"32": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Of the network's arithmetic on a GPU, by `training.precision`."""


class SliceNetwork(nn.Module):
    """Lets a 2-D network work on volumes, slice by slice.

    Args:
        network: (B, M * slices, Y, X) -> logits (B, C, Y, X).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(B, M, slices, Y, X) -> logits (B, C, 1, Y, X) of the middle slice."""
        return self.network(image.flatten(1, 2)).unsqueeze(2)


class MovedStem(nn.Module):
    """Averages a network with itself on the image moved by half the stride of its stem.

    A strided stem decides about one block of voxels at a time. Moved, the blocks lie elsewhere, so their
    edges no longer show in the outlines.

    Args:
        segmenter: (B, M, *S) -> logits (B, C, *S), with `stem` strides.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.axes = [2 + a for a, stride in enumerate(segmenter.stem) if stride > 1]
        self.moves = [stride // 2 for stride in segmenter.stem if stride > 1]

    def forward(self, image: Tensor) -> Tensor:
        """(B, M, *S) -> logits (B, C, *S)."""
        logits = self.segmenter(image)
        moved = self.segmenter(image.roll(self.moves, self.axes))
        moved = moved.roll([-m for m in self.moves], self.axes)
        # The far end saw the near end beside it, so what is there stays as it was.
        whole = [slice(None)] * image.ndim
        for axis, move in zip(self.axes, self.moves, strict=True):
            whole[axis] = slice(0, image.shape[axis] - move)
        inside = tuple(whole)
        logits[inside] = (logits[inside] + moved[inside]) / 2
        return logits


def as_model(network: nn.Module, plan: Plan) -> nn.Module:
    """The network as `predict_slabs` calls it."""
    return SliceNetwork(network) if plan.network.dims == 2 else network


@dataclass
class Predictor:
    """Trained models and everything an image needs on its way to them and back.

    Attributes:
        models: (B, M, Z + 2 context, Y, X) -> logits (B, C, Z, Y, X); folds, averaged.
        plan: that they were trained with.
        overlap: of neighbouring windows.
        flips: average over mirrored inputs by default.
        batch: windows per call.
        device: where the models are.
        dtype: of their arithmetic.
        recipe: written beside the predictions.
        run: written beside the predictions.
        channels: names of the channel files where every case is a folder.
        patient_pattern: finds the patient in the name of a new image.
        annotated: case id -> foreground classes drawn there, where not all are; for the evaluation.
    """

    models: Sequence[Model]
    plan: Plan
    overlap: float = 0.5
    flips: bool = False
    batch: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    recipe: str = ""
    run: str = ""
    channels: list[str] | None = field(default=None)
    patient_pattern: str | None = None
    annotated: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def from_run(cls, run: Path | Sequence[Path], device: str | None = None) -> Predictor:
        """Load trained models.

        Args:
            run: a run folder, with one model or one per fold; or several of them.
            device: default: a GPU where there is one.

        Raises:
            InputError: nothing trained there, or models that do not prepare an image the same way.
        """
        from scotoma.training.run import RunFolder

        runs = [Path(run)] if isinstance(run, str | Path) else [Path(r) for r in run]
        folds = [fold for r in runs for fold in RunFolder(r).folds()]
        plans = [fold.read_plan() for fold in folds]
        for (first, a), (other, b) in pairwise(zip(folds, plans, strict=True)):
            differing = next((name for name in _SHAPING if getattr(a, name) != getattr(b, name)), None)
            if differing:
                raise InputError(
                    f"{other.plan}: '{differing}' differs from {first.plan}; only models that see an image"
                    " the same way can be averaged, so predict with each of them alone."
                )
        device = usable_device(device)
        settings = folds[0].settings()
        prediction = settings.prediction
        models: list[Model] = []
        for fold, plan in zip(folds, plans, strict=True):
            segmenter = fold.segmenter()
            network = (
                MovedStem(segmenter) if prediction.smooth_stem and max(segmenter.stem) > 1 else segmenter
            )
            models.append(as_model(network, plan).to(device).eval())
        on_gpu = device.startswith("cuda")
        return cls(
            models,
            plans[0],
            overlap=prediction.overlap,
            flips=prediction.flips,
            batch=plans[0].batch if on_gpu else 1,
            device=device,
            dtype=PRECISION[settings.training.precision] if on_gpu else torch.float32,
            recipe=settings.recipe,
            run=", ".join(str(r) for r in runs),
            channels=settings.data.channels,
            patient_pattern=settings.data.patient_pattern,
            annotated=settings.data.annotated,
        )

    def predict_image(
        self,
        image: Image,
        *,
        flips: bool | None = None,
        probabilities: bool = False,
        scratch: Path | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict one image.

        Args:
            image: array (M, *S) on any grid.
            flips: average over mirrored inputs; None: as the predictor is set.
            probabilities: return them as well.
            scratch: folder for the file that holds them meanwhile, 2 bytes per voxel and class.

        Returns:
            Class map, uint8 (*S), and the probabilities as a uint16 (C, *S) memory map with 65535 = 1, or
            None.

        Raises:
            InputError: an image that the models cannot take (channels, axes, NaN).
            ScotomaError: the network gives values that are not finite.
        """
        plan = self.plan
        array, canonical = prepare_image(image, plan)
        shape = array.shape[1:]
        axis = slab_axis(shape, plan.patch)
        mirrored = plan.flips if flips or (flips is None and self.flips) else []
        slabs = predict_slabs(
            self.models,
            array,
            plan.patch,
            len(plan.classes),
            overlap=self.overlap,
            batch=self.batch,
            context=plan.context,
            flips=mirrored,
            axis=axis,
            device=self.device,
            dtype=self.dtype,
        )
        store = ProbabilityStore(canonical.shape, len(plan.classes), axis, scratch) if probabilities else None
        classes = restore(slabs, shape, canonical.shape, axis, store)
        own = np.ascontiguousarray(from_canonical(classes[None], image.grid, plan.first_axis)[0])
        return own, from_canonical(store.array(), image.grid, plan.first_axis) if store else None


@dataclass(frozen=True)
class Predictions:
    """What a prediction folder holds.

    Attributes:
        out: the folder.
        written: ids of the cases predicted.
        failed: case id -> one sentence.
    """

    out: Path
    written: list[str]
    failed: dict[str, str]


def predict_folder(
    run: Path | Sequence[Path],
    images: Path,
    out: Path,
    *,
    part: str | None = None,
    probabilities: bool = False,
    flips: bool | None = None,
    baselines: bool = False,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_error: Callable[[str, str], None] | None = None,
) -> Predictions:
    """Predict every image of a folder with a trained run.

    Args:
        run: see `Predictor.from_run`; or a run that learned without labels, which scores anomalies instead.
        images: a folder of images, or one image; with `part`, a dataset.
        out: see `predict_cases`.
        part: only the "train", "validation" or "test" cases of the run's split of that dataset.
        probabilities: see `predict_cases`.
        flips: see `predict_cases`.
        baselines: of a run without labels: write the baselines' maps too.
        device: see `Predictor.from_run`.
        progress: called with (done, all).
        on_error: called with (case id, sentence).

    Raises:
        InputError: no model, no images, or no such part.
        SettingsError: something asked for that this kind of run cannot do.
    """
    from scotoma.training.run import RunFolder, is_anomaly_run

    first = run if isinstance(run, str | Path) else run[0]
    if is_anomaly_run(Path(first)):
        from scotoma.prediction.anomaly import predict_anomaly_folder, refuse_for_anomalies

        refuse_for_anomalies(probabilities, flips)
        if not isinstance(run, str | Path) and len(run) > 1:
            raise SettingsError(f"{first}: runs without labels are not averaged; predict with one at a time.")
        (fold,) = RunFolder(Path(first)).folds()
        return predict_anomaly_folder(
            fold, images, out, part=part, baselines=baselines, device=device,
            progress=progress, on_error=on_error,
        )  # fmt: skip
    if baselines:
        raise SettingsError("--baselines goes with runs of no-labels only; this one learned from labels.")
    predictor = Predictor.from_run(run, device)
    if part is None:
        cases = images_of_patients(
            images, predictor.channels, len(predictor.plan.channel_names), predictor.patient_pattern
        )
    else:
        cases = cases_of_split(run, images, part)
    return predict_cases(
        predictor, cases, out, probabilities=probabilities, flips=flips, progress=progress, on_error=on_error
    )


def images_of_patients(
    images: Path, channels: list[str] | None, count: int, pattern: str | None
) -> tuple[Case, ...]:
    """New images, with the patients that the run's `data.patient_pattern` finds in their names; an image that
    is named otherwise is a patient of its own."""

    def patient(case: Case) -> Case:
        found = re.search(pattern, case.id) if pattern else None
        return replace(case, patient=found.group(1)) if found else case

    return tuple(map(patient, list_images(images, channels, count)))


def usable_device(wanted: str | None) -> str:
    """The device asked for, or a GPU where there is one.

    Raises:
        SettingsError: not the name of a device, or one that is not there.
    """
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:100]
        raise SettingsError(f"--device {wanted}: cannot be used here ({reason}); try cpu.") from None
    return wanted


def cases_of_split(run: Path | Sequence[Path], data: Path, part: str) -> list[Case]:
    """The "train", "validation" or "test" cases of a run's split, found in the dataset it was trained on.

    Raises:
        SettingsError, InputError: no such part, or no such cases.
    """
    from scotoma.training.run import RunFolder

    runs = [Path(run)] if isinstance(run, str | Path) else [Path(r) for r in run]
    folds = [fold for r in runs for fold in RunFolder(r).folds()]
    if part not in ("train", "validation", "test"):
        raise SettingsError(f"no part '{part}' of a split; choose train, validation or test.")
    if len(folds) > 1 and part != "test":
        raise SettingsError(
            f"{folds[0].path.parent}: every fold has its own {part} cases; predict with one fold at a time."
        )
    where = folds[0].settings().data
    names = set(getattr(read_split(folds[0].splits), part))
    dataset = open_dataset(data, where.labels, where.channels, where.patient_pattern)
    cases = [case for case in dataset.train if case.id in names]
    if missing := names - {case.id for case in cases}:
        raise InputError(
            f"{data}: has no case '{min(missing)}', which the split of {folds[0].path} names;"
            " give the dataset that the run was trained on."
        )
    if not cases:
        raise InputError(f"{folds[0].splits}: lists no {part} cases; predict a folder of images instead.")
    return cases


def predict_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    out: Path,
    *,
    probabilities: bool = False,
    flips: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_error: Callable[[str, str], None] | None = None,
) -> Predictions:
    """Predict cases into a prediction folder (docs/design.md); one bad image never costs the others.

    Args:
        predictor: models and plan.
        cases: their masks, if any, are not read.
        out: folder to write; must not be the one that holds the images or masks.
        probabilities: write them as well.
        flips: average over mirrored inputs; None: as the predictor is set.
        progress: called with (done, all).
        on_error: called with (case id, sentence) for every case that could not be predicted.

    Raises:
        InputError: writing there would replace an input.
    """
    heading = {
        "label_map": predictor.plan.label_map.model_dump(mode="json"),
        "recipe": predictor.recipe,
        "run": predictor.run,
        "scotoma": __version__,
    }
    out = Path(out)
    return predict_each(
        cases,
        out,
        heading,
        lambda case: _predict_case(predictor, case, out, probabilities, flips),
        progress,
        on_error,
    )


def predict_each(
    cases: Sequence[Case],
    out: Path,
    heading: dict[str, Any],
    predict_one: Callable[[Case], dict[str, Any]],
    progress: Callable[[int, int], None] | None = None,
    on_error: Callable[[str, str], None] | None = None,
) -> Predictions:
    """Predict case after case and keep `prediction.json`, the list of what is there and what failed.

    Args:
        cases: see `predict_cases`.
        out: folder to write.
        heading: of the list.
        predict_one: writes the files of a case and returns its entry in the list.
        progress: called with (done, all).
        on_error: called with (case id, sentence) for every case that could not be predicted.

    Raises:
        InputError: writing there would replace an input.
    """
    _keep_inputs(cases, out)
    written: dict[str, Any] = {}
    failed: dict[str, str] = {}

    def save() -> None:
        write_json(out / "prediction.json", {**heading, "cases": written, "failed": failed})

    # At once, so that the list of an earlier prediction does not stand beside masks of this one.
    save()
    try:
        for done, case in enumerate(cases):
            if progress:
                progress(done, len(cases))
            try:
                written[case.id] = predict_one(case)
            except Exception as error:
                failed[case.id] = _sentence(case, error)
                log.debug("%s", failed[case.id], exc_info=error)
                if on_error:
                    on_error(case.id, failed[case.id])
        if progress:
            progress(len(cases), len(cases))
    finally:
        save()
    return Predictions(out, list(written), failed)


def _predict_case(
    predictor: Predictor, case: Case, out: Path, probabilities: bool, flips: bool | None
) -> dict[str, Any]:
    target = mask_path(case, out)
    image = read_image(case.images)
    classes, scaled = predictor.predict_image(image, flips=flips, probabilities=probabilities, scratch=out)
    entry: dict[str, Any] = {
        "patient": case.patient or case.id,
        "annotated": predictor.annotated.get(case.id),
        "images": [str(p.absolute()) for p in case.images],
        "prediction": target.name,
        "probabilities": None,
    }
    if scaled is not None:
        name = f"probabilities/{case.id}{probabilities_extension(case.images[0])}"
        write_probabilities(out / name, scaled, image)
        entry["probabilities"] = name
    write_mask(target, predictor.plan.label_map.restore(classes), image)
    return entry


def mask_path(case: Case, out: Path) -> Path:
    """Where the mask predicted for a case lies."""
    if not case.id or case.id.startswith(".") or any(mark in case.id for mark in "/\\:\0"):
        raise InputError(f"{case.images[0]}: '{case.id}' cannot be the name of a file; rename the image.")
    return out / f"{case.id}{mask_extension(case.images[0])}"


def _keep_inputs(cases: Sequence[Case], out: Path) -> None:
    inputs = {p.resolve() for case in cases for p in (*case.images, *([case.label] if case.label else []))}
    for case in cases:
        target = out / f"{case.id}{mask_extension(case.images[0])}"
        if target.resolve() in inputs:
            raise InputError(f"{target}: is an input and would be overwritten; choose another output folder.")


def _sentence(case: Case, error: Exception) -> str:
    if isinstance(error, ScotomaError):
        text = str(error)
        # An error that comes from the network does not know the image.
        return text if str(case.images[0].parent) in text else f"{case.images[0]}: {text}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"{case.images[0]}: not enough memory to predict it; use a machine with more."
    return f"{case.images[0]}: could not be predicted ({type(error).__name__}: {error}); run with --debug."
