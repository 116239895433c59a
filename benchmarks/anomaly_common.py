"""What the anomaly benchmarks share: features that are computed once, figures, rows of the table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scotoma.anomaly import baselines, detector, features
from scotoma.anomaly.case import Case
from scotoma.evaluation.anomaly import curves
from scotoma.evaluation.statistics import Bootstrap
from scotoma.files import replacing

COLUMNS = {
    "auroc": "AUROC",
    "auroc30": "AUROC30",
    "auprc": "AUPRC",
    "aupro": "AUPRO",
    "aupro30": "AUPRO30",
    "best_dice": "best Dice (oracle)",
    "dice": "Dice at controls' 98 %",
}
PATIENT_METRICS = ("auroc", "aupro30", "auprc")
"""Kept of each patient."""

Scorer = Callable[[Case], np.ndarray]

TAIL = 0.02
"""The fixed threshold lets this share of the normal cases' voxels pass."""


def share_features() -> Callable[[], None]:
    """Let detectors in this process reuse a case's features, which do not depend on the SVM.

    Returns:
        Forgets what is kept: to be called when an auto-encoder is done with.
    """
    known: dict[tuple, np.ndarray] = {}

    def remembered(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def call(*arguments: Any, **more: Any) -> np.ndarray:
            key = (function.__name__, *map(_fingerprint, arguments))
            if key not in known:
                known[key] = function(*arguments, **more)
            return known[key]

        return call

    detector.latent_vectors = baselines.latent_vectors = remembered(features.latent_vectors)
    detector.centre_intensities = remembered(features.centre_intensities)
    return known.clear


def _fingerprint(argument: Any) -> Any:
    if isinstance(argument, Case):
        return argument.name, int(argument.mask.sum())
    if hasattr(argument, "state_dict"):
        return tuple(float(p.double().sum()) for p in argument.state_dict().values())
    return argument if isinstance(argument, tuple | str) else str(argument)


def figures(
    scores: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    counted: Sequence[np.ndarray],
    threshold: float,
) -> dict[str, float | None]:
    """The columns of the table, and the prevalence, over all cases pooled; null for what is undefined."""
    c = curves(list(scores), list(truth), list(counted))
    values = {
        "auroc": c.auroc(),
        "auroc30": c.auroc(0.3),
        "auprc": c.auprc(),
        "prevalence": c.prevalence,
        "aupro": c.aupro(),
        "aupro30": c.aupro(0.3),
        "best_dice": c.best_dice()[0],
        "dice": c.dice_at(threshold),
    }
    return {k: round(v, 6) if np.isfinite(v) else None for k, v in values.items()}


def judge(
    maps: Sequence[np.ndarray],
    lesions: Sequence[dict[str, np.ndarray]],
    masks: Sequence[np.ndarray],
    threshold: float,
) -> dict[str, Any]:
    """Figures of all lesions and of each kind, pooled and (under "patients") of each patient.

    Args:
        maps: anomaly maps (Z, Y, X).
        lesions: of each patient the voxels (Z, Y, X) of each kind; other kinds do not count for a kind.
        masks: voxels that are judged.
        threshold: fixed on controls.
    """
    together = [np.any(list(kinds.values()), axis=0) for kinds in lesions]
    result: dict[str, Any] = {"all": figures(maps, together, masks, threshold)}
    patients: list[dict[str, Any]] = [
        {"load": float((t & m).sum() / m.sum()), "all": figures([s], [t], [m], threshold)}
        for s, t, m in zip(maps, together, masks, strict=True)
    ]
    for kind in lesions[0]:
        truth = [kinds[kind] for kinds in lesions]
        counted = [m & (~a | t) for m, a, t in zip(masks, together, truth, strict=True)]
        result[kind] = figures(maps, truth, counted, threshold)
        for row, s, t, c in zip(patients, maps, truth, counted, strict=True):
            row[kind] = figures([s], [t], [c], threshold)
    for row in patients:
        for kind, values in row.items():
            if kind != "load":
                row[kind] = {m: values[m] for m in PATIENT_METRICS}
    return {**result, "patients": patients}


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean, and the range where there is one."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    mean = _short(statistics.fmean(known), digits)
    if len(known) == 1 or max(known) - min(known) < 0.5 * 10**-digits:
        return mean
    return f"{mean} ({_short(min(known), digits)}-{_short(max(known), digits)})"


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


def table(rows: dict[str, list[dict[str, float | None]]], digits: int = 3) -> list[str]:
    """Markdown table: one row for each name, its figures one per seed."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name, seeds in rows.items():
        cells = [spread([s[c] for s in seeds], digits) for c in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def control_threshold(scores: Sequence[np.ndarray]) -> float:
    """The score that a share `TAIL` of the voxels of normal cases exceeds, each case counting alike."""
    size = min(len(s) for s in scores)
    each = [np.sort(s)[np.linspace(0, len(s) - 1, size).astype(int)] for s in scores]
    return float(np.quantile(np.concatenate(each), 1 - TAIL))


def save_case(path: Path, case: Case, **more: np.ndarray) -> None:
    """Keep a case for the next start of the benchmark."""
    with replacing(path) as temporary:
        parts = {"image": case.image, "mask": case.mask, "spacing": np.array(case.spacing)}
        if case.excluded is not None:
            parts["excluded"] = case.excluded
        np.savez(temporary, **parts, **more)


def load_case(path: Path) -> tuple[Case, dict[str, np.ndarray]]:
    """What `save_case` wrote."""
    with np.load(path) as file:
        parts = {name: file[name] for name in file.files}
    z, y, x = (float(s) for s in parts.pop("spacing"))
    case = Case(path.stem, parts.pop("image"), parts.pop("mask"), parts.pop("excluded", None), (z, y, x))
    return case, parts


def differences(seeds: Sequence[dict[str, Any]], row: str, other: str, drawn_anew: bool) -> dict[str, Any]:
    """Paired differences of a row to another one, mean over the patients of all seeds.

    Args:
        seeds: rows of each seed.
        row, other: names of rows.
        drawn_anew: whether each seed has patients of its own; else a patient's seeds are drawn together.

    Returns:
        For each kind and metric "value", 95 % bootstrap interval over patients "low" and "high", "patients".
    """
    out: dict[str, Any] = {}
    for kind in (k for k in seeds[0][row]["patients"][0] if k != "load"):
        for metric in PATIENT_METRICS:
            values, names = [], []
            for seed, rows in enumerate(seeds):
                for number, (a, b) in enumerate(
                    zip(rows[row]["patients"], rows[other]["patients"], strict=True)
                ):
                    if a[kind][metric] is not None and b[kind][metric] is not None:
                        values.append(a[kind][metric] - b[kind][metric])
                        names.append(f"{seed} {number}" if drawn_anew else str(number))
            interval = Bootstrap(names).mean(np.array(values))
            known = {k: None if np.isnan(v) else round(v, 6) for k, v in vars(interval).items()}
            out.setdefault(kind, {})[metric] = {**known, "patients": len(set(names))}
    return out


def paired_table(paired: dict[str, Any]) -> list[str]:
    """Markdown table of `differences` to several other rows."""
    lines = ["| against | kind | patients | AUROC | AUPRO30 | AUPRC |", "|---|---|---|---|---|---|"]
    for other, by_kind in paired.items():
        for kind, metrics in by_kind.items():
            cells = [f"{m['value']:+.3f} ({m['low']:+.3f} to {m['high']:+.3f})" for m in metrics.values()]
            lines.append(f"| {other} | {kind} | {metrics['auroc']['patients']} | " + " | ".join(cells) + " |")
    return lines
