"""From images of patients to a folder of anomaly maps, candidate lesions and masks (docs/design.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scotoma import __version__
from scotoma.anomaly.baselines import IntensityThreshold, RandomScores, ReconstructionError
from scotoma.anomaly.candidates import find_candidates, write_candidates
from scotoma.anomaly.controls import ControlScores, read_controls
from scotoma.anomaly.detector import PatientAnomalyDetector
from scotoma.anomaly.preparation import Preparation, Prepared, prepare, read_preparation
from scotoma.anomaly.storage import load_detector
from scotoma.config import AnomalySettings, Settings
from scotoma.data.dataset import Case
from scotoma.data.image import Image, read_image, write_image, write_mask
from scotoma.data.labels import LabelMap
from scotoma.errors import InputError, SettingsError
from scotoma.prediction.predict import (
    Predictions,
    cases_of_split,
    images_of_patients,
    mask_path,
    predict_each,
    usable_device,
)

if TYPE_CHECKING:
    from scotoma.training.run import RunFolder

METHOD = "no-labels"
BASELINES = ("intensity", "reconstruction", "random")
SCORE = (
    "minus log10 of the share of normal voxels that score as high or higher: 2 means that one normal voxel in"
    " a hundred does"
)


@dataclass
class AnomalyPredictor:
    """A fitted detector and everything an image needs on its way to it and back.

    Attributes:
        detector: fitted.
        preparation: how images become cases.
        reference: what cases on another grid are aligned to; None where none is.
        settings: of the run's section `anomaly`.
        controls: scores of the held-out normal cases; None before they are known.
        recipe, variant, run: written beside the predictions.
        channels: names of the channel files where every case is a folder.
        device: where to compute.
    """

    detector: PatientAnomalyDetector
    preparation: Preparation
    reference: Image | None
    settings: AnomalySettings
    controls: ControlScores | None
    recipe: str
    variant: str | None
    run: str
    channels: list[str] | None
    device: str

    @classmethod
    def from_run(cls, run: RunFolder, device: str | None = None) -> AnomalyPredictor:
        """Load a finished run.

        Raises:
            InputError: nothing trained there.
        """
        device = usable_device(device)
        preparation = read_preparation(run.preparation)
        return cls.of(
            run.settings(),
            load_detector(run.weights, device),
            preparation,
            read_reference(run, preparation),
            read_controls(run.controls),
            str(run.path),
        )

    @classmethod
    def of(
        cls,
        settings: Settings,
        detector: PatientAnomalyDetector,
        preparation: Preparation,
        reference: Image | None,
        controls: ControlScores | None,
        run: str,
    ) -> AnomalyPredictor:
        """Put one together from its parts."""
        assert settings.anomaly is not None
        return cls(
            detector,
            preparation,
            reference,
            settings.anomaly,
            controls,
            settings.recipe,
            settings.variant,
            run,
            settings.data.channels,
            str(detector.device),
        )

    def prepare(self, case: Case) -> Prepared:
        """Read a case and bring it to where the normal cases are."""
        return prepare(case, self.preparation, self.reference)

    def score(self, prepared: Prepared, baselines: bool = False) -> dict[str, np.ndarray]:
        """Anomaly maps (Z, Y, X) float32 of a case: "no-labels" and, on request, those of `BASELINES`.

        Raises:
            InputError: fewer voxels than the detector draws, another grid than the normal cases'.
        """
        case = prepared.case
        try:
            scores = {METHOD: self.detector.score(case)}
        except InputError as error:
            # the file says more than the name of the case
            reason = str(error).removeprefix(f"{case.name}: ")
            raise InputError(f"{prepared.image.path}: {reason}") from error
        if baselines:
            # of colour pictures the green channel, which has most of the contrast
            channel = 1 if self.preparation.pictures and len(case.image) == 3 else -1
            scores["intensity"] = IntensityThreshold(channel).score(case)
            scores["reconstruction"] = ReconstructionError(self.detector.autoencoder, self.device).score(case)
            scores["random"] = RandomScores(self.detector.seed).score(case)
        return scores

    def heading(self, baselines: bool) -> dict[str, Any]:
        """What stands above the cases in `prediction.json`."""
        assert self.controls is not None
        quantile = self.settings.threshold
        heading = {
            "kind": "anomaly",
            "recipe": self.recipe,
            "variant": self.variant,
            "run": self.run,
            "scotoma": __version__,
            "label_map": LabelMap.plain(["background", "anomaly"]).model_dump(mode="json"),
            "score": SCORE,
            "threshold": self.controls.threshold(METHOD, quantile),
            "threshold_source": f"{100 * quantile:g} % quantile of the scored voxels of"
            f" {len(self.controls.cases)} held-out normal case(s)",
            "candidate_threshold": self.controls.threshold(METHOD, self.settings.candidate_threshold),
            "controls": self.controls.table(METHOD),
        }
        if baselines:
            heading["thresholds"] = {name: self.controls.threshold(name, quantile) for name in BASELINES}
        return heading

    def write_maps(self, case: Case, prepared: Prepared, scores: dict[str, np.ndarray], out: Path) -> None:
        """Write the maps of a case, and which voxels were scored, on the image's own grid."""
        files = _files(case, prepared.image, len(scores) > 1)
        for name, values in scores.items():
            path = files["map"] if name == METHOD else files["baselines"][name]
            write_image(out / path, prepared.on_image(values)[None], prepared.image)
        write_mask(out / files["region"], prepared.region(), prepared.image)

    def write_findings(self, case: Case, image: Image, out: Path, baselines: bool) -> dict[str, Any]:
        """Write mask and candidate lesions from the map that lies there already.

        Returns:
            The entry of the case in `prediction.json`.
        """
        assert self.controls is not None
        files = _files(case, image, baselines)
        scores = read_image(out / files["map"]).array[0].reshape(image.grid.shape)
        smallest = self.settings.candidate_voxels
        likely = self.controls.threshold(METHOD, self.settings.candidate_threshold)
        write_candidates(out / files["candidates"], find_candidates(scores, image.grid, likely, smallest)[0])
        threshold = self.controls.threshold(METHOD, self.settings.threshold)
        pieces = find_candidates(scores, image.grid, threshold, smallest)[1]
        target = mask_path(case, out)
        write_mask(target, (pieces > 0).astype(np.uint8), image)
        return {
            "patient": case.patient or case.id,
            "annotated": None,
            "images": [str(p.absolute()) for p in case.images],
            "prediction": target.name,
            "probabilities": None,
            **files,
        }


def read_reference(run: RunFolder, preparation: Preparation) -> Image | None:
    """The image that cases are aligned to, (1, Z, Y, X) on the preparation's grid."""
    if not preparation.align:
        return None
    image = read_image(run.reference)
    return Image(image.array, preparation.grid)


def predict_anomaly_folder(
    run: RunFolder,
    images: Path,
    out: Path,
    *,
    part: str | None = None,
    baselines: bool = False,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_error: Callable[[str, str], None] | None = None,
) -> Predictions:
    """Score every image of a folder with a run that learned from normal cases.

    Args:
        run: finished.
        images: a folder of images, or one image; with `part`, a dataset.
        out: see `predict_anomalies`.
        part: only the "train", "validation" or "test" cases of the run's split of that dataset.
        baselines: see `predict_anomalies`.
        device: default: a GPU where there is one.
        progress: called with (done, all).
        on_error: called with (case id, sentence).

    Raises:
        InputError: no images, or no such part.
    """
    predictor = AnomalyPredictor.from_run(run, device)
    if part is None:
        pattern = run.settings().data.patient_pattern
        cases = images_of_patients(images, predictor.channels, len(predictor.preparation.channels), pattern)
    else:
        cases = cases_of_split(run.path, images, part)
    return predict_anomalies(predictor, cases, out, baselines=baselines, progress=progress, on_error=on_error)


def predict_anomalies(
    predictor: AnomalyPredictor,
    cases: Sequence[Case],
    out: Path,
    *,
    baselines: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_error: Callable[[str, str], None] | None = None,
) -> Predictions:
    """Score cases into a prediction folder (docs/design.md); one bad image never costs the others.

    Args:
        predictor: of a finished run.
        cases: their lesion masks, if any, are not read.
        out: folder to write; must not be the one that holds the images.
        baselines: write the maps of `BASELINES` too.
        progress: called with (done, all).
        on_error: called with (case id, sentence) for every case that could not be scored.

    Raises:
        InputError: writing there would replace an input.
    """
    out = Path(out)

    def one(case: Case) -> dict[str, Any]:
        mask_path(case, out)
        prepared = predictor.prepare(case)
        predictor.write_maps(case, prepared, predictor.score(prepared, baselines), out)
        return predictor.write_findings(case, prepared.image, out, baselines)

    return predict_each(cases, out, predictor.heading(baselines), one, progress, on_error)


def refuse_for_anomalies(probabilities: bool, flips: bool | None) -> None:
    """Say which wishes of `predict` a detector cannot fulfil.

    Raises:
        SettingsError: probabilities or flips.
    """
    if probabilities:
        raise SettingsError("a run of no-labels has no probabilities; it always writes its anomaly maps.")
    if flips is not None:
        raise SettingsError("a run of no-labels does not average over flips; leave out --flips/--no-flips.")


def _files(case: Case, image: Image, baselines: bool) -> dict[str, Any]:
    """Paths of what is written for a case, relative to the prediction folder."""
    volume = image.grid.ndim == 3
    maps, region = (".nii.gz", ".nii.gz") if volume else (".tif", ".png")
    return {
        "map": f"maps/{case.id}{maps}",
        "region": f"regions/{case.id}{region}",
        "candidates": f"candidates/{case.id}.csv",
        "baselines": {name: f"baselines/{name}/{case.id}{maps}" for name in BASELINES} if baselines else {},
    }
