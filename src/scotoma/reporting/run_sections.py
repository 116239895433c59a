"""The parts of a report about the training: curves, data, settings, versions."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from scotoma.reporting.parts import Section
from scotoma.reporting.sources import Run, hide_paths
from scotoma.reporting.training_figures import learning_curves
from scotoma.reporting.wording import UNDEFINED, count, significant, unit_name

_KINDS = {
    "mri": "MRI, arbitrary units",
    "ct": "CT, Hounsfield units",
    "colour": "colour pictures",
    "grey": "grey pictures",
}


def training_curves(run: Run) -> Section:
    """Validation metric, total loss, every term of it, learning rate."""
    title = "Learning curves"
    folds = run.folds
    runs = {fold.name.replace("_", " "): fold for fold in folds} if len(folds) > 1 else {"": folds[0]}
    drawn = learning_curves(runs)
    if not drawn:
        return Section("curves", title, None, "There is no metrics.csv in the run folder.")
    last = next(iter(runs.values())).metrics
    facts = []
    for name, say in (("step", lambda v: count(int(v), "step")), ("seconds", _duration)):
        value = (last.get(name) or [None])[-1]
        if value is not None:
            facts.append(say(value))
    notes = [", ".join([count(len(last["epoch"]), "epoch"), *facts]) + "."]
    return Section("curves", title, {"figures": drawn, "notes": notes, "small": True})


def _share(share: float | None) -> str:
    """Per cent with two digits that say something, since targets may be tiny."""
    return UNDEFINED if share is None else f"{significant(100 * share, 2)} %"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def data_summary(run: Run) -> Section:
    """What the training data look like."""
    title = "Data"
    first = run.folds[0]
    found = first.fingerprint
    if not found.get("cases"):
        return Section("data", title, None, "There is no fingerprint.json in the run folder.")
    unit = unit_name(found.get("unit", "px"))
    splits = first.splits
    parts = [f"{len(splits[name])} {name}" for name in ("train", "validation", "test") if splits.get(name)]
    facts = [
        (
            "Normal cases" if run.is_anomaly else "Cases",
            str(len(found["cases"]))
            + ("" if run.is_anomaly else f" ({found.get('labelled', 0)} with a mask)"),
        ),
        *([("Split", ", ".join(parts))] if parts else []),
        ("Images", _KINDS.get(found.get("kind", ""), str(found.get("kind", "")))),
        ("Channels", ", ".join(first.channel_names) or str(found.get("channels", ""))),
        ("Median shape", " × ".join(significant(n) for n in found.get("median_shape", [])) + " voxels"),
        ("Median spacing", " × ".join(significant(n) for n in found.get("median_spacing", [])) + f" {unit}"),
    ]
    if not run.is_anomaly:
        facts.append(("Foreground", _share(found.get("foreground_share")) + " of the voxels that count"))
    rows = []
    for name, c in (found.get("classes") or {}).items():
        per_case, diameter = c.get("lesions_per_case"), c.get("diameter")
        rows.append(
            [
                name,
                f"{c['cases']} of {found.get('labelled', 0)}",
                _share(c["share"]),
                str(c["lesions"]),
                UNDEFINED
                if not per_case
                else f"{significant(per_case[1], 2)} ({significant(per_case[0], 2)}–"
                f"{significant(per_case[2], 2)})",
                UNDEFINED
                if not diameter
                else f"{significant(diameter[2], 2)} ({significant(diameter[0], 2)}–"
                f"{significant(diameter[4], 2)}) {unit}",
            ]
        )
    header = ["Class", "Cases that have it", "Share of voxels", "Lesions", "Per case, median (10–90 %)",
              "Diameter, median (5–95 %)"]  # fmt: skip
    return Section("data", title, {"facts": facts, "header": header, "rows": rows})


def settings(run: Run) -> Section:
    """Settings as they were used, the plan, versions and machine."""
    title = "Settings and versions"
    first = run.folds[0]
    current = run.settings or first.settings
    if not current and not first.environment:
        return Section(
            "settings", title, None, "There is neither config.yaml nor environment.json in the run folder."
        )
    reasons = first.plan.get("reasons") or {}
    plan = {k: v for k, v in first.plan.items() if k not in ("reasons", "label_map")}
    environment = first.environment
    machine = environment.get("machine") or {}
    about = {
        "seed": environment.get("seed"),
        "data hash": environment.get("data_hash"),
        "started": environment.get("started"),
        **{str(k).replace("_", " "): v for k, v in machine.items()},
    }
    return Section(
        "settings",
        title,
        {
            "tables": [
                ("Settings", flat(current), {}),
                ("Plan", flat(plan), {k: hide_paths(str(v)) for k, v in reasons.items()}),
                ("Preparation of the images", flat(first.preparation), {}),
                ("Versions", flat(environment.get("versions") or {}), {}),
                ("Run", flat({k: v for k, v in about.items() if v not in (None, [])}), {}),
            ]
        },
    )


def flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (name, value) lines; folders of this machine are left out of the values."""
    out: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            out += flat(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            for n, v in enumerate(value):
                out += flat(v, f"{name}.{n}.")
        else:
            out.append((name, _plain(value)))
    return out


def _plain(value: Any) -> str:
    if value is None:
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return (
            ", ".join(_plain(v) if not isinstance(v, list) else "×".join(map(_plain, v)) for v in value)
            or "none"
        )
    text = str(value)
    # A path that is the whole value may hold spaces, where `hide_paths` could not see its end.
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return kind(text).name
    return hide_paths(text)
