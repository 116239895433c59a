"""What an evaluation says, in sentences: what is good, what is not, what to be careful about.

The limits between good and not good are conventions for the reader's eye, not properties of the field, so
every sentence carries its numbers and counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from scotoma.reporting.sources import Evaluation, Run
from scotoma.reporting.wording import count, decimals, interval, percent, significant, unit_name, value_of

Tone = Literal["good", "bad", "neutral"]
FEW_PATIENTS = 20
DOUBT = (0.05, 0.15)
"""`scotoma.losses.objective.DOUBT`, without loading PyTorch for a report."""


@dataclass(frozen=True)
class Finding:
    """A sentence and how it should be taken."""

    tone: Tone
    text: str


def findings(evaluation: Evaluation) -> list[Finding]:
    """Sentences about an evaluation, the most important first."""
    lesions = evaluation.content.get("lesions", {}).get(evaluation.lesion_group) or {}
    parts = (
        _detection(lesions),
        _by_size(lesions, evaluation.unit),
        _hidden_sensitivity(lesions),
        _overlap(evaluation),
        _empty_cases(evaluation),
        _volume(evaluation),
        _calibration(evaluation),
        _few_patients(evaluation),
    )
    return [finding for part in parts for finding in part]


def _around(figure: dict[str, Any], style: Any) -> str:
    text = interval(figure, style)
    return f" (95 % interval {text})" if text else ""


def _detection(lesions: dict[str, Any]) -> Iterator[Finding]:
    sensitivity = value_of(lesions.get("sensitivity"))
    if sensitivity is None or not lesions["n_lesions"]:
        return
    false = value_of(lesions["false_positives_per_case"])
    tone: Tone = "good" if sensitivity >= 0.85 else "bad" if sensitivity < 0.6 else "neutral"
    yield Finding(
        tone,
        f"It finds {lesions['n_detected']} of {count(lesions['n_lesions'], 'lesion')}, {percent(sensitivity)}"
        f"{_around(lesions['sensitivity'], percent)}.",
    )
    precision = value_of(lesions.get("precision"))
    if false is not None and precision is not None and lesions["n_candidates"]:
        tone = "good" if precision >= 0.8 else "bad" if precision < 0.5 else "neutral"
        yield Finding(
            tone,
            f"Of {count(lesions['n_candidates'], 'finding')} it marks, {percent(precision)} are lesions; that"
            f" leaves {decimals(false, 1)} false alarms per case.",
        )


def _by_size(lesions: dict[str, Any], unit: str) -> Iterator[Finding]:
    bins = [b for b in lesions.get("by_size") or [] if b["n"] >= 5]
    if len(bins) < 2:
        return
    small, rest = bins[0], bins[1:]
    others = sum(b["detected"] for b in rest) / sum(b["n"] for b in rest)
    if small["to"] is None or others - small["sensitivity"] < 0.15:
        return
    yield Finding(
        "bad" if small["sensitivity"] < 0.6 else "neutral",
        f"Small lesions are the weak spot: {small['detected']} of {small['n']} below"
        f" {significant(small['to'])} {unit_name(unit)} are found, against"
        f" {percent(others)} of the larger ones.",
    )


def _hidden_sensitivity(lesions: dict[str, Any]) -> Iterator[Finding]:
    highest, now = value_of(lesions.get("max_sensitivity")), value_of(lesions.get("sensitivity"))
    threshold = lesions.get("max_sensitivity_threshold")
    froc = lesions.get("froc")
    if highest is None or now is None or threshold is None or not froc or highest - now < 0.05:
        return
    cost = froc["false_positives_per_case"][froc["threshold"].index(threshold)]
    yield Finding(
        "neutral",
        f"With the threshold at {threshold:g} instead of 0.5 it would find up to {percent(highest)}, at"
        f" {decimals(cost, 1)} false alarms per case.",
    )


def _overlap(evaluation: Evaluation) -> Iterator[Finding]:
    dice = evaluation.content.get("summary", {}).get(evaluation.voxel_group, {}).get("dice")
    if not dice or dice["mean"] is None:
        return
    tone: Tone = "good" if dice["mean"] >= 0.8 else "bad" if dice["mean"] < 0.5 else "neutral"
    text = (
        f"Overlap with the truth is a Dice of {decimals(dice['mean'])} on average over"
        f" {count(dice['n'], 'case')}{_around(dice, decimals)}"
    )
    ranked = [c for c in evaluation.cases if c["mean_dice"] is not None]
    if len(ranked) >= 3:
        worst = min(ranked, key=lambda c: c["mean_dice"])
        text += f"; the worst case, {worst['case']}, has {decimals(worst['mean_dice'])}"
    yield Finding(tone, text + ".")


def _empty_cases(evaluation: Evaluation) -> Iterator[Finding]:
    for name in evaluation.classes:
        situations = [c["classes"][name]["situation"] for c in evaluation.cases]
        of = f" of {name}" if len(evaluation.classes) > 1 else ""
        if missed := situations.count("miss"):
            present = missed + situations.count("present")
            yield Finding(
                "bad",
                f"In {missed} of {count(present, 'case')} that have it, nothing{of} at all was marked;"
                " they count as Dice 0.",
            )
        false, clear = situations.count("false_alarm"), situations.count("both_empty")
        if false + clear:
            yield Finding(
                "bad" if false > 0.5 * (false + clear) else "neutral" if false else "good",
                f"Of {count(false + clear, 'case')} without any {name}, {clear}"
                f" {'is' if clear == 1 else 'are'} left clear and {false} {'has' if false == 1 else 'have'}"
                " a false alarm.",
            )


def _volume(evaluation: Evaluation) -> Iterator[Finding]:
    if len(evaluation.classes) > 1:
        return
    name = evaluation.classes[0]
    errors = [c["classes"][name]["relative_volume_error"] for c in evaluation.cases]
    known = [e for e in errors if e is not None]
    if len(known) < 3:
        return
    middle = median(known)
    if abs(middle) < 0.05:
        yield Finding("good", f"Volumes are right at the median ({percent(middle)} off).")
    else:
        tone: Tone = "bad" if abs(middle) > 0.25 else "neutral"
        direction = "small" if middle < 0 else "large"
        yield Finding(tone, f"Volumes come out too {direction}: by {percent(abs(middle))} at the median.")


def _calibration(evaluation: Evaluation) -> Iterator[Finding]:
    found = evaluation.content.get("calibration")
    ece = value_of((found or {}).get("ece_foreground"))
    if not found or ece is None:
        return
    bins = [b for b in found["bins_foreground"] if b["n"]]
    total = sum(b["n"] for b in bins)
    gap = sum(b["n"] * (b["confidence"] - b["accuracy"]) for b in bins) / max(1, total)
    if ece < 0.05:
        yield Finding(
            "good", f"Probabilities mean what they say: calibration error {percent(ece)} near lesions."
        )
    else:
        how = "overconfident" if gap > 0 else "too cautious"
        yield Finding(
            "bad" if ece > 0.15 else "neutral",
            f"Probabilities are {how}: where lesion is drawn or called, they are off by"
            f" {round(100 * ece)} points on average.",
        )


def _few_patients(evaluation: Evaluation) -> Iterator[Finding]:
    n = len({c["patient"] for c in evaluation.cases})
    if n < FEW_PATIENTS:
        yield Finding(
            "neutral",
            f"This rests on {count(n, evaluation.drawn[:-1])}; with fewer than {FEW_PATIENTS}, intervals are"
            " rough and somewhat too short.",
        )


def cautions(evaluation: Evaluation) -> list[str]:
    """What keeps the figures of an evaluation from meaning what they seem to mean."""
    content = evaluation.content
    out = []
    if failed := content.get("failed"):
        is_in, it_is = ("is in", "it is") if len(failed) == 1 else ("are in", "they are")
        many = count(len(failed), "case")
        out.append(f"{many} could not be evaluated and {is_in} no figure; {it_is} listed below.")
    if skipped := content.get("not_predicted"):
        out.append(f"{count(len(skipped), 'case')} with a mask had no prediction asked for.")
    for group in evaluation.classes:
        summary = content.get("summary", {}).get(group, {}).get("dice") or {}
        if n := summary.get("n_undefined"):
            out.append(
                f"{group}: Dice is undefined in {count(n, 'case')} (truth and prediction both"
                " empty); the mean leaves them out."
            )
    if evaluation.is_validation:
        out.append(
            "These are the validation cases, which also chose the weights: somewhat too good a judge."
            if evaluation.run and keeps_best(evaluation.run)
            else "These are the validation cases of the training data."
        )
        if evaluation.folds:
            out.append(
                f"Every case was segmented by the one of {len(evaluation.folds)} models that was not trained"
                " on it; the average of the models, which `predict` uses, is not judged here."
            )
        if evaluation.run and doubts_missing(evaluation.run):
            out.append(
                "Their labels are doubted like those of the training cases: a lesion the annotator missed"
                " counts here as a false alarm. Judge by cases with complete labels."
            )
    return out + [evaluation.hide_paths(note) for note in content.get("notes") or []]


def doubts_missing(run: Run) -> bool:
    """Whether the run's objective supposed to the end that lesions are missing from the labels."""
    supposed = (
        run.recipe == "missing-lesions" or (run.settings.get("objective") or {}).get("voxel") == "lopsided"
    )
    measured = measured_miss_rate(run)
    return supposed and (measured is None or measured > DOUBT[0])


def keeps_best(run: Run) -> bool:
    """Whether the validation cases chose the weights."""
    select = (run.settings.get("training") or {}).get("select")
    return select == "best" or (select == "trusted" and not doubts_missing(run))


def measured_miss_rate(run: Run) -> float | None:
    """The share of lesions that the run found to be missing at least, None where it did not measure."""
    return next((rate for rate in reversed(run.metrics.get("train_miss_rate", [])) if rate is not None), None)


def run_warnings(run: Run) -> list[str]:
    """What the training itself had to complain about."""
    out = [f"Collapse: {alarm}" for alarm in run.alarms]
    measured = measured_miss_rate(run)
    if measured is not None and doubts_missing(run):
        much = "" if measured >= DOUBT[1] else ", a little"
        out.append(
            f"At least {percent(measured)} of the lesions are missing from the masks it learned from, by its"
            f" own detections; it doubted the background from then on{much}."
        )
    elif measured is not None:
        out.append(
            "It found no evidence that lesions are missing from the masks it learned from, or had too few"
            " cases to tell, so it believed them, as `baseline` does."
        )
    if doubts_missing(run) and keeps_best(run):
        out.append(
            "The weights kept are those with the best Dice on validation labels from which lesions may be"
            " missing; that favours a model that omits them. Select on a few cases with complete labels, or"
            " keep the last weights (training.select = last)."
        )
    return out
