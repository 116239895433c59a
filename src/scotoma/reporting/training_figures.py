"""Curves of the training: validation metric, loss, every term of it, learning rate."""

from __future__ import annotations

from scotoma.reporting.charts import SERIES, Chart, linear_axis
from scotoma.reporting.figures import Figure, first_series, legend, linear_unit_axis
from scotoma.reporting.findings import keeps_best
from scotoma.reporting.sources import Run
from scotoma.reporting.wording import decimals, significant


def learning_curves(runs: dict[str, Run]) -> list[Figure]:
    """One chart for the validation metric, the total loss, and every term of the loss.

    Args:
        runs: name of the series -> run (folds of one run, or runs to compare).
    """
    runs = first_series({name: run for name, run in runs.items() if run.metrics.get("epoch")})
    columns = list(dict.fromkeys(c for run in runs.values() for c in run.metrics))
    terms = sorted((c for c in columns if c.startswith("train_")), key=lambda c: (c != "train_loss", c))
    figures = [validation_curve(runs)]
    figures += [
        _curve(runs, name, name.replace("_", " "))
        for name in columns
        if name.startswith("validation_") and not name.startswith("validation_dice")
    ]
    figures += [
        _curve(runs, name, "loss" if name == "train_loss" else f"loss term {name.removeprefix('train_')}")
        for name in terms
    ]
    figures.append(_curve(runs, "learning_rate", "learning rate"))
    return [f for f in figures if f is not None]


def _series(run: Run, name: str) -> tuple[list[float], list[float]]:
    pairs = [
        (e, v)
        for e, v in zip(run.metrics["epoch"], run.metrics.get(name, []), strict=False)
        if e is not None and v is not None
    ]
    return [e for e, _ in pairs], [v for _, v in pairs]


def _curve(runs: dict[str, Run], name: str, title: str) -> Figure | None:
    series = [(n, *_series(run, name)) for n, run in enumerate(runs.values())]
    series = [s for s in series if s[1]]
    if not series:
        return None
    epochs = [e for run in runs.values() for e in _series(run, "epoch")[1]]
    values = [v for _, _, y in series for v in y]
    low = 0.0 if min(values) >= 0 else None
    chart = Chart(
        linear_axis("epoch", epochs, 0),
        linear_axis("", values, low, 4),
        f"{title} over the epochs, last value {significant(values[-1])}",
        width=300,
        height=190,
    )
    for n, x, y in series:
        chart.line(x, y, n)
        if len(x) == 1:
            chart.dot(x[0], y[0], significant(y[0]), n)
    return Figure(title[0].upper() + title[1:], chart.svg(), "", legend(list(runs)))


def validation_curve(runs: dict[str, Run]) -> Figure | None:
    """Dice on the validation patches (of one run: by class), and the epoch whose weights were kept."""
    one = next(iter(runs.values())) if len(runs) == 1 else None
    if one is not None:
        names = [c for c in one.metrics if c == "validation_dice" or c.startswith("validation_dice_")]
        if len(names) == 2:
            names = names[:1]
        series = [(c.removeprefix("validation_dice").lstrip("_") or "mean", *_series(one, c)) for c in names]
    else:
        series = [(label, *_series(run, "validation_dice")) for label, run in runs.items()]
    series = [s for s in series if s[1]][:SERIES]
    if not series:
        return None
    epochs = [e for _, x, _ in series for e in x]
    chart = Chart(
        linear_axis("epoch", epochs, 0),
        linear_unit_axis(""),
        f"Dice of the validation patches over the epochs, last value {decimals(series[0][2][-1])}",
        width=300,
        height=190,
    )
    caption = "Fixed patches of the validation cases, all voxels together."
    if one is not None and keeps_best(one):
        x, y = series[0][1], series[0][2]
        best = x[y.index(max(y))]
        chart.guide(best, 0, best, 1, "kept")
        caption += " The weights of the epoch marked were kept."
    for n, (_, x, y) in enumerate(series):
        chart.line(x, y, n)
        if len(x) == 1:
            chart.dot(x[0], y[0], decimals(y[0]), n)
    return Figure("Validation Dice", chart.svg(), caption, legend([s[0] for s in series]))
