"""What is in a dataset, what is wrong with it, and which recipe answers it: `scotoma check`."""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scotoma.data.dataset import Case, Dataset
from scotoma.data.examine import Examination, Fault, Request, examine_all, run, values_of
from scotoma.data.fingerprint import ClassSummary, Fingerprint, summarise_examinations
from scotoma.data.labels import IGNORE, LabelMap, propose_label_map

TOLERANCE_MM = 0.01
"""How far the corner voxels of an image and its mask may lie apart.

Single-precision headers leave some micrometres; a hundredth of a millimetre is far below a voxel.
"""

EXTREME_SHARE = 2e-3
"""Classes that fill less than this share of the voxels are called out."""

FEW_LABELLED = 0.5
"""Below this share of labelled cases, missing masks are taken for a choice rather than for an accident."""


@dataclass(frozen=True)
class CheckResult:
    """What `check` found.

    Attributes:
        faults: errors first, then warnings; each with its file.
        fingerprint: of the training cases without a fault; None when there are none.
        label_map: the given one, or the proposed one; None when no case has a mask.
        label_reasons: how the proposal came about, where it was not obvious.
        recipe: the suggestion; None when there is nothing to go by.
        reason: one sentence for it.
        cases, labelled, test: how many.
    """

    faults: list[Fault]
    fingerprint: Fingerprint | None
    label_map: LabelMap | None
    label_reasons: list[str]
    recipe: str | None
    reason: str
    cases: int
    labelled: int
    test: int

    @property
    def errors(self) -> list[Fault]:
        return [f for f in self.faults if f.severity == "error"]

    @property
    def warnings(self) -> list[Fault]:
        return [f for f in self.faults if f.severity == "warning"]

    def lines(self) -> list[str]:
        """One line for each fault."""
        return [f"{f.severity}: {f.message}" for f in self.faults]

    def to_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {
            "cases": self.cases,
            "labelled": self.labelled,
            "test": self.test,
            "faults": [
                {
                    "kind": f.kind,
                    "severity": f.severity,
                    "case": f.case,
                    "file": str(f.file),
                    "message": f.message,
                }
                for f in self.faults
            ],
            "label_map": None if self.label_map is None else self.label_map.model_dump(mode="json"),
            "label_reasons": self.label_reasons,
            "recipe": self.recipe,
            "reason": self.reason,
            "fingerprint": None if self.fingerprint is None else self.fingerprint.model_dump(mode="json"),
        }


def check(
    dataset: Dataset,
    label_map: LabelMap | None = None,
    annotated: Mapping[str, list[int]] | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    masks_needed: bool = True,
) -> CheckResult:
    """Read every case and list what would spoil a training.

    Images are read once. Masks are read once when their values have names (in `dataset.json` or by
    `label_map`), otherwise a second time, first of all, to propose what the values mean. A worker holds one
    case at a time.

    Args:
        dataset: from `open_dataset`.
        label_map: meaning of the mask values; proposed when None.
        annotated: case id -> foreground classes drawn there, where not all are.
        tolerance_mm: see `TOLERANCE_MM`.
        workers: processes; 0 and 1 read in this one.
        progress: called with (files done, files in all).
        masks_needed: False where cases without a mask are as good, as for learning without labels.
    """
    cases = [*dataset.train, *dataset.test]
    masks = [c.label for c in cases if c.label is not None]
    reasons: list[str] = []
    proposal = label_map
    scanned = 0
    if proposal is None and masks:
        values = {}
        if not dataset.label_names:
            scanned = len(masks)
            total = scanned + len(cases)
            read = run(values_of, masks, workers, progress and (lambda n, _: progress(n, total)))
            values = {str(p): v for p, v in zip(masks, read, strict=True) if v is not None}
        proposal, reasons = propose_label_map(values, dataset.label_names)
    request = Request(
        proposal or LabelMap.plain(["background", "object"]), tolerance_mm, dataset.channel_names
    )  # fmt: skip
    found = examine_all(
        cases, request, annotated or {}, workers,
        progress and (lambda n, all_: progress(scanned + n, scanned + all_)),
    )  # fmt: skip
    train, test = found[: len(dataset.train)], found[len(dataset.train) :]
    faults = [f for e in found for f in e.faults]
    faults += _unpaired(dataset, masks_needed) + _mixed(found, dataset) + _duplicates(train, test)
    faults += _misnamed(dataset, annotated or {}, proposal)
    bad = {f.file for f in faults if f.severity == "error"}
    good = [e for e in train if e.fingerprint is not None and not bad & {*e.case.images, e.case.label}]
    summary = summarise_examinations(good, request.label_map) if good else None
    if summary is not None and masks:
        faults += _imbalance(dataset, summary)
    recipe, reason = suggest_recipe(dataset, summary)
    return CheckResult(
        faults=sorted(faults, key=lambda f: (f.severity, str(f.file))),
        fingerprint=summary,
        label_map=proposal,
        label_reasons=reasons,
        recipe=recipe,
        reason=reason,
        cases=len(dataset.train),
        labelled=sum(c.label is not None for c in dataset.train),
        test=len(dataset.test),
    )


def _unpaired(dataset: Dataset, masks_needed: bool) -> list[Fault]:
    faults = [
        Fault(
            "missing-image",
            "error",
            "",
            p,
            f"{p}: a mask without an image; add the image or remove the mask.",
        )
        for p in dataset.orphan_labels
    ]
    bare = [c for c in dataset.train if c.label is None]
    if not masks_needed or not bare or len(bare) == len(dataset.train):
        return faults
    if len(dataset.train) - len(bare) >= FEW_LABELLED * len(dataset.train):
        for c in bare:
            text = f"{c.images[0]}: the mask of this image is missing; add it or remove the image."
            faults.append(Fault("missing-mask", "error", c.id, c.images[0], text))
    else:
        text = (
            f"{dataset.root}: {len(bare)} of {len(dataset.train)} images have no mask; taken as unlabelled."
        )
        faults.append(Fault("missing-mask", "warning", "", dataset.root, text))
    return faults


def _mixed(found: list[Examination], dataset: Dataset) -> list[Fault]:
    """Cases with another number of channels, or pictures among volumes."""
    read = [e for e in found if e.channels is not None]
    if not read:
        return []
    stated = len(dataset.channel_names) if dataset.channel_names and dataset.layout != "msd" else None
    counts = [e.channels for e in read if e.channels is not None]
    usual = stated if stated in counts else statistics.mode(counts)
    ndims = [len(e.fingerprint.shape) for e in read if e.fingerprint]
    usual_ndim = statistics.mode(ndims) if ndims else 0
    faults = []
    for e in read:
        file = e.case.images[0]
        if any(f.severity == "error" for f in e.faults):
            continue
        if e.channels != usual:
            text = (
                f"{file}: {e.channels} channels, other cases have {usual}; give all cases the same channels."
            )
            faults.append(Fault("channels", "error", e.case.id, file, text))
        elif e.fingerprint and len(e.fingerprint.shape) != usual_ndim:
            what = "a volume among pictures" if usual_ndim == 2 else "a picture among volumes"
            text = f"{file}: {what}; put them into separate datasets."
            faults.append(Fault("dimensions", "error", e.case.id, file, text))
    return faults


def _duplicates(train: list[Examination], test: list[Examination]) -> list[Fault]:
    """Equal images, named once for every copy beyond the first; copies in the test set weigh more."""
    tested = {digest: e.case for e in test for digest in e.digests}
    faults: list[Fault] = []
    first: dict[str, Case] = {}
    for e in train:
        file = e.case.images[0]
        if known := [tested[d] for d in e.digests if d in tested]:
            other = known[0].images[0]
            text = f"{file}: this image is also in the test set ({other.name}); remove it from training."
            faults.append(Fault("leakage", "error", e.case.id, file, text))
        elif known := [first[d] for d in e.digests if d in first]:
            other = known[0].images[0]
            text = f"{file}: the same image as {other.name}, and could validate what it trained; remove one."
            faults.append(Fault("duplicate", "error", e.case.id, file, text))
        for digest in e.digests:
            first.setdefault(digest, e.case)
    return faults


def _misnamed(
    dataset: Dataset, annotated: Mapping[str, list[int]], label_map: LabelMap | None
) -> list[Fault]:
    """Cases and classes in `data.annotated` that do not exist; what nobody drew would train as background."""
    cases = {c.id for c in (*dataset.train, *dataset.test)}
    last = len(label_map.classes) - 1 if label_map else IGNORE
    faults = []
    for name, drawn in annotated.items():
        if name not in cases:
            close = difflib.get_close_matches(name, sorted(cases), 1)
            hint = f"did you mean '{close[0]}'?" if close else f"a case of it is '{min(cases)}'."
            text = f"data.annotated names '{name}', which is no case of this dataset; {hint}"
            faults.append(Fault("annotated", "error", "", dataset.root, f"{dataset.root}: {text}"))
        elif wrong := [c for c in drawn if not 1 <= c <= last]:
            text = (
                f"data.annotated names class {wrong[0]} for case '{name}', but the foreground classes are "
                f"numbered from 1 to {last}; correct it."
            )
            faults.append(Fault("annotated", "error", name, dataset.root, f"{dataset.root}: {text}"))
    return faults


def _imbalance(dataset: Dataset, found: Fingerprint) -> list[Fault]:
    """One line for all classes that no mask holds, and one for all that are rare."""
    faults = []
    absent = [name for name, summary in found.classes.items() if summary.voxels == 0]
    rare = {n: s.share for n, s in found.classes.items() if s.voxels and s.share < EXTREME_SHARE}
    if absent:
        them = "it" if len(absent) == 1 else "them"
        text = f"no mask holds {_classes(absent)}; remove {them} from the labels or add cases."
        faults.append(Fault("absent-class", "warning", "", dataset.root, f"{dataset.root}: {text}"))
    if rare:
        fill = "fills" if len(rare) == 1 else "each fill no more than"
        text = (
            f"{_classes(list(rare))} {fill} {100 * max(rare.values()):.2g} % of the voxels "
            "(extreme imbalance); the recipe rare-target is made for this."
        )
        faults.append(Fault("imbalance", "warning", "", dataset.root, f"{dataset.root}: {text}"))
    return faults


def _classes(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"class{'es' if len(names) > 1 else ''} {shown}{more}"


# --- which recipe --------------------------------------------------------------------------------------


def suggest_recipe(dataset: Dataset, found: Fingerprint | None) -> tuple[str | None, str]:
    """The recipe whose problem shows in the data, and one sentence why.

    What can be seen: whether there are masks, how many cases have one, how much of the image the target
    fills, whether masks are frayed, and how the number of lesions varies. Whether annotators missed
    lesions cannot be seen for certain; the sentence says what speaks for it.
    """
    labelled, cases = sum(c.label is not None for c in dataset.train), len(dataset.train)
    if labelled == 0:
        return "no-labels", f"none of the {cases} images has a mask; it learns from normal cases alone."
    if found is None:
        return None, "no case is free of faults; repair them first."
    present = {n: s for n, s in found.classes.items() if s.voxels}
    if not present:
        why = f"all {labelled} masks are empty: there are only normal cases, and it learns from those alone."
        return "no-labels", why
    if labelled < FEW_LABELLED * cases:
        return "few-labels", f"{labelled} of {cases} images have a mask."
    share = found.foreground_share
    if share < EXTREME_SHARE:
        return "rare-target", f"the target fills {100 * share:.2g} % of the voxels that count."
    for name, summary in present.items():
        if why := _patchy(name, summary, found):
            return "missing-lesions", why
    for name in present:
        if why := _frayed(name, found):
            return "noisy-pixels", why
    return "baseline", "nothing in the masks speaks for another recipe."


def _patchy(name: str, summary: ClassSummary, found: Fingerprint) -> str | None:
    """Many small objects whose number varies as if some were not drawn."""
    if summary.lesions_per_case is None or summary.diameter is None:
        return None
    low, middle, high = summary.lesions_per_case
    if middle < 5 or high < 5 * max(low, 1):
        return None
    return (
        f"'{name}' comes as many objects (median {middle:.0f} in a case, diameter {summary.diameter[2]:.3g} "
        f"{found.unit}) whose number varies from {low:.0f} to {high:.0f} (10th to 90th percentile): "
        "missed ones would not show."
    )


def _frayed(name: str, found: Fingerprint) -> str | None:
    """One large object with loose specks around it in most cases."""
    frayed = seen = 0
    for case in found.cases:
        volumes = case.lesions[name].volumes if case.lesions else []
        if not volumes:
            continue
        seen += 1
        rest = sum(volumes[1:])
        specks = sum(v < 0.01 * volumes[0] for v in volumes[1:])
        frayed += specks >= 3 and rest < 0.1 * volumes[0]
    if seen < 3 or frayed <= seen / 2:
        return None
    return (
        f"in {frayed} of {seen} cases specks lie around the one large object of '{name}', as in frayed masks."
    )
