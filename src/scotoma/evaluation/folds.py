"""The validation cases of all folds together: every case segmented by the model that was not trained on it.

Nothing is read but the folds' `evaluation.json`: their rows of cases are summarised again, which gives the
content of an evaluation of all cases (`scotoma.evaluation.evaluate`), and besides

    {
      "folds": [{"name": "fold_0", "n_cases", "n_patients",
                 "figures": {"lesion": {"dice", "surface_dice", "hd95": means over the cases,
                                        "sensitivity", "precision", "false_positives_per_case",
                                        "average_precision": of all lesions | null}}}],
                                        also "all classes" with several, whose lesions are of any foreground
      "over_folds": {"lesion": {"dice": {"mean", "median", "std", "min", "max", "n", "n_undefined"}}}
    }

The mean over folds weighs every fold alike, the summary every case; `std` is the spread from fold to fold,
not an interval, since the models share most of their training cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scotoma.errors import InputError
from scotoma.evaluation import summary
from scotoma.evaluation.cases import ANY_FOREGROUND, Options
from scotoma.evaluation.evaluate import Evaluation, provenance
from scotoma.evaluation.policy import Policy
from scotoma.evaluation.statistics import describe_values, numbers
from scotoma.evaluation.summary import ALL_CLASSES
from scotoma.evaluation.tables import FOLD_FIGURES

_MEANS = ("dice", "surface_dice", "hd95")


def merge_folds(folds: Sequence[Path], out: Path | None = None) -> Evaluation:
    """Evaluate the validation cases of all folds together.

    Args:
        folds: folders RUN/fold_0/validation, ... that hold an `evaluation.json` of masks.
        out: folder for `evaluation.json`, `cases.csv` and `lesions.csv`, RUN/validation; nothing is written
            when None.

    Raises:
        InputError: a fold without an evaluation, folds evaluated differently, or a case in two of them.

    Example:
        >>> folds = [run / f"fold_{n}" / "validation" for n in range(5)]  # doctest: +SKIP
        >>> merge_folds(folds, run / "validation")  # doctest: +SKIP
    """
    folders = [Path(folder).resolve() for folder in folds]
    contents = [Evaluation.load(folder).content for folder in folders]
    _check(folders, contents)
    first = contents[0]
    rows = sorted((row for content in contents for row in content["cases"]), key=lambda row: row["case"])
    settings = first["settings"]
    options = Options(Policy(settings["both_empty"]), settings["surface_tolerance"])
    run = folders[0].parents[1]
    content = provenance("masks", run, Path(first["truth"]))
    content |= {"recipe": first["recipe"], "run": str(run)}
    content |= summary.summarise(rows, first["classes"], options, settings["seed"])
    content |= _asked(contents) | _of_folds(folders, contents)
    content["notes"] = _notes(contents) + content["notes"]
    evaluation = Evaluation(summary.clean(content))
    if out is not None:
        evaluation.write(Path(out))
    return evaluation


def _check(folders: list[Path], contents: list[dict[str, Any]]) -> None:
    seen: dict[str, Path] = {}
    for folder, content in zip(folders, contents, strict=True):
        if content["kind"] != "masks":
            raise InputError(f"{folder}: holds anomaly maps, which have no folds; give evaluations of masks.")
        if _manner(content) != _manner(contents[0]):
            raise InputError(
                f"{folder}: was evaluated with other classes or settings than {folders[0]};"
                " evaluate both alike."
            )
        for row in content["cases"]:
            if row["case"] in seen:
                raise InputError(
                    f"{folder}: {row['case']} is in {seen[row['case']]} too; give folds that share no case."
                )
            if "unit" not in row or (row["calibration"] and "bins" not in row["calibration"]):
                raise InputError(f"{folder}: was evaluated by an older version; run `scotoma evaluate` anew.")
            seen[row["case"]] = folder


def _manner(content: dict[str, Any]) -> list[Any]:
    settings = content["settings"]
    return [
        content["classes"],
        *(settings[k] for k in ("both_empty", "surface_tolerance", "thresholds", "min_iou")),
    ]


def _asked(contents: list[dict[str, Any]]) -> dict[str, Any]:
    """What was expected, failed or left out of all folds; a case that one fold predicted is not left out."""
    failed = {case: why for content in contents for case, why in content["failed"].items()}
    evaluated = {row["case"] for content in contents for row in content["cases"]}
    left = {case for content in contents for case in content["not_predicted"]} - evaluated - set(failed)
    no_truth = sorted({case for content in contents for case in content["no_truth"]})
    return {
        "counts": {
            "expected": sum(content["counts"]["expected"] for content in contents),
            "evaluated": len(evaluated),
            "failed": len(failed),
            "not_predicted": len(left),
            "no_truth": len(no_truth),
        },
        "failed": dict(sorted(failed.items())),
        "not_predicted": sorted(left),
        "no_truth": no_truth,
    }


def _notes(contents: list[dict[str, Any]]) -> list[str]:
    """What the folds said, but for what only followed from which cases they have."""
    said = [n for c in contents for n in c["notes"] if n not in summary.notes_on(c["cases"])]
    return list(dict.fromkeys(said))


def _of_folds(folders: list[Path], contents: list[dict[str, Any]]) -> dict[str, Any]:
    filled = [
        (folder, content) for folder, content in zip(folders, contents, strict=True) if content["cases"]
    ]
    folds = [
        {
            "name": folder.parent.name,
            "n_cases": len(content["cases"]),
            "n_patients": len({row["patient"] for row in content["cases"]}),
            "figures": _figures(content),
        }
        for folder, content in filled
    ]
    groups = list(folds[0]["figures"]) if folds else []
    spread = {
        group: {
            key: describe_values(numbers([fold["figures"][group][key] for fold in folds]))
            for key in FOLD_FIGURES
        }
        for group in groups
    }
    return {"folds": folds, "over_folds": spread}


def _figures(content: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    classes = content["classes"][1:]
    out = {}
    for group in [*classes, ALL_CLASSES] if len(classes) > 1 else classes:
        means = content["summary"][group]
        lesions = content["lesions"][ANY_FOREGROUND if group == ALL_CLASSES else group]
        pooled = {k: (lesions[k] or {"value": None})["value"] for k in FOLD_FIGURES if k not in _MEANS}
        out[group] = {k: means[k]["mean"] for k in _MEANS} | pooled
    return out
