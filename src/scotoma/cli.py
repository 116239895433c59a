"""The command line: verbs that parse, call and print. Everything heavy is imported inside the verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from scotoma.console import print_check, print_evaluation, print_json, print_table, saying

app = typer.Typer(
    name="scotoma",
    help="Medical image segmentation when the labels are imperfect.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

FAULTS, UNUSABLE = 1, 2
"""Exit codes: the data has faults, or some cases failed; the command could not do its work."""

Data = Annotated[
    Path, typer.Argument(help="Folder of cases: nnU-Net raw, MSD, images/ + labels/, or case folders.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Overrule a setting; may be repeated."),
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.callback(invoke_without_command=False)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda on: _version(on))
    ] = False,
) -> None:
    if debug:
        os.environ["SCOTOMA_DEBUG"] = "1"


def _version(wanted: bool) -> None:
    if wanted:
        from scotoma import __version__

        print(f"scotoma {__version__}")
        raise typer.Exit


@app.command()
def demo(
    recipe: Annotated[
        str | None, typer.Argument(help="'no-labels' for anomaly maps learned from normal brains alone.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; default: scotoma-demo[-RECIPE].")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with this many seeds; mean and spread.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Generate brain phantoms, hide half of the lesions from training, and show what that costs."""
    from scotoma.benchmarking.demo import FIGURES, run_demo

    if recipe is not None:
        _demo_of(recipe, out, seeds, quiet)
        return
    with saying(quiet) as say:
        result = run_demo(out or Path("scotoma-demo"), seeds=seeds, progress=say.progress)
    header = ["recipe", *[label for _, label in FIGURES], "Dice"]
    title = "Lesions of the test patients, against the full truth" + (
        f" (mean and range over {seeds} seeds)" if seeds > 1 else ""
    )
    print_table(title, header, result.rows())
    print(f"{result.seconds:.0f} s; report: {result.report}")


def _demo_of(recipe: str, out: Path | None, seeds: int, quiet: bool) -> None:
    from scotoma.benchmarking.demo_no_labels import run_no_labels_demo
    from scotoma.errors import SettingsError

    if recipe != "no-labels":
        raise SettingsError(f"no demo '{recipe}'; there are `scotoma demo` and `scotoma demo no-labels`.")
    if seeds != 1:
        raise SettingsError("--seeds goes with `scotoma demo` alone; `scotoma demo no-labels` runs one seed.")
    with saying(quiet) as say:
        result = run_no_labels_demo(out or Path("scotoma-demo-no-labels"), progress=say.progress)
    title = "Voxels of lesions ranked above others, by kind of lesion; 1 is perfect"
    print_table(title, result.header, result.rows())
    print(f"{result.seconds:.0f} s; report: {result.report}")


@app.command()
def check(
    data: Data,
    config: Config = None,
    settings: Set = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe whose settings to start from.")] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write a repaired copy of the data to this new folder.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Write the plan that `train` would follow, to edit it.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What is there, what is wrong with it, and which recipe fits. Exit code 1 when there are errors."""
    from scotoma.config import load_settings
    from scotoma.data.check import check as run_check
    from scotoma.training.train import given_label_map, open_data, plan_for

    wanted = load_settings(recipe, config, settings)
    dataset = open_data(data, wanted)
    with saying(quiet or json) as say:
        result = run_check(
            dataset,
            label_map=given_label_map(wanted, dataset),
            annotated=wanted.data.annotated or None,
            tolerance_mm=wanted.data.tolerance_mm,
            progress=lambda done, of: say.progress("checking", done, of),
            masks_needed=wanted.anomaly is None,
        )
    if json:
        print_json(result.to_json())
    elif not quiet or result.faults:
        print_check(data, dataset, result, only_faults=quiet)
    if fix is not None:
        from scotoma.data.repair import repair

        for line in repair(dataset, result, fix):
            print(line, file=sys.stderr if json else sys.stdout)
    errors = bool(result.errors)
    if plan is not None and not errors and result.label_map is not None:
        labelled = [case for case in dataset.train if case.label is not None]
        plan_for(dataset, wanted, labelled, result.label_map, result).save(plan)
    if errors:
        raise typer.Exit(FAULTS)


@app.command()
def train(
    data: Data,
    out: Out,
    recipe: Annotated[str | None, typer.Option(help="Name of a recipe, or a YAML file like one.")] = None,
    config: Config = None,
    settings: Set = None,
    plan: Annotated[Path | None, typer.Option(help="Follow this plan.json instead of deriving one.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with an interrupted run; with --recipe begin one if need be."),
    ] = False,
    devices: Annotated[int | None, typer.Option(min=1, help="GPUs, or processes on CPU.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines, under SLURM or torchrun.")] = None,
    precision: Annotated[str | None, typer.Option(help="32, bf16-mixed or 16-mixed.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    quiet: Quiet = False,
) -> None:
    """Check, plan, preprocess and train; evaluates the result on the validation cases."""
    from scotoma.config import load_settings, resumed_settings
    from scotoma.errors import SettingsError
    from scotoma.training.run import RunFolder
    from scotoma.training.train import FaultyDataError
    from scotoma.training.train import train as run_train

    flags = {
        "training.devices": devices,
        "training.nodes": nodes,
        "training.precision": precision,
        "seed": seed,
    }
    overrides = [*(settings or []), *(f"{k}={v}" for k, v in flags.items() if v is not None)]
    saved = RunFolder(out).config
    if resume and saved.is_file():
        wanted = resumed_settings(saved, recipe, config, overrides)
    elif resume and recipe is None and config is None:
        raise SettingsError(
            f"{out}: no training has begun there that could be resumed; begin one with --recipe."
        )
    else:
        wanted = load_settings(recipe, config, overrides)
    with saying(quiet) as say:
        try:
            run_train(
                data,
                wanted,
                out,
                plan_file=plan,
                resume=resume,
                progress=say.progress,
                progress_bar=say.live,
            )
        except FaultyDataError as error:
            say.stop()
            for line in error.result.lines():
                print(line, file=sys.stderr)
            print(f"scotoma: {error}", file=sys.stderr)
            raise typer.Exit(FAULTS) from None
    if not quiet:
        from scotoma.evaluation.evaluate import Evaluation
        from scotoma.training.run import RunFolder, is_anomaly_run

        if is_anomaly_run(out):
            print(f"{out}: ready; `scotoma predict {out} IMAGES -o OUT` writes anomaly maps")
            return
        parts = RunFolder(out).folds()
        several = len(parts) > 1
        print(
            "\nvalidation cases"
            + (" of all folds, each by the model that has not seen it" if several else "")
        )
        print_evaluation(Evaluation.load(RunFolder(out).validation))
        for part in parts:
            for alarm in part.read_alarms():
                print(f"collapse{f' in {part.path.name}' if several else ''}: {alarm}")


@app.command()
def predict(
    run: Annotated[
        Path, typer.Argument(help="Folder written by `train`; with folds inside, they are averaged.")
    ],
    images: Annotated[Path, typer.Argument(help="Folder of images, one image, or a dataset with --cases.")],
    out: Out,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write probability maps too.")
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Without labels: write the baselines' maps too.")
    ] = False,
    cases: Annotated[
        str | None,
        typer.Option(
            help="IMAGES is a dataset; predict its 'train', 'validation' or 'test' cases of this run's split."
        ),
    ] = None,
    flips: Annotated[
        bool | None, typer.Option("--flips/--no-flips", help="Average over mirrored inputs.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Segment new images, or score what is not normal in them, on the images' own grid."""
    from scotoma.prediction.predict import predict_folder

    with saying(quiet) as say:
        result = predict_folder(
            run,
            images,
            out,
            part=cases,
            probabilities=probabilities,
            flips=flips,
            baselines=baselines,
            device=device,
            progress=lambda done, of: say.progress("predicting", done, of),
        )
    for case, sentence in result.failed.items():
        print(f"{case}: {sentence}", file=sys.stderr)
    if not quiet:
        print(
            f"{len(result.written)} written to {out}"
            + (f", {len(result.failed)} failed" if result.failed else "")
        )
    if result.failed:
        raise typer.Exit(FAULTS)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder written by `predict`, or any folder of masks.")],
    truth: Annotated[Path, typer.Argument(help="Folder of masks, or a dataset.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the tables; default: PREDICTIONS.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Mask folder (or stem) inside a dataset given as TRUTH.")
    ] = None,
    label_map: Annotated[
        str | None,
        typer.Option(
            metavar="YAML",
            help="Class of each value in the masks, of both sides: '{0: 0, 255: 1, 128: ignore}'.",
        ),
    ] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Its group is the patient in a case's name, as in '(.*)_'; default: as `predict` wrote it.",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Of the surface Dice: mm, or pixels where images have no spacing.")
    ] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the bootstrap intervals.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare predictions with truth: voxels, surfaces in mm, lesions, calibration; or anomaly maps."""
    from scotoma.evaluation.evaluate import evaluate as run_evaluate
    from scotoma.evaluation.values import read_value_map

    values = None if label_map is None else read_value_map(label_map)
    with saying(quiet or json) as say:
        evaluation = run_evaluate(
            predictions,
            truth,
            label_map=values,
            out=out or predictions,
            workers=workers,
            labels=labels,
            tolerance=tolerance,
            patient_pattern=patient_pattern,
            seed=seed,
            progress=lambda done, of: say.progress("evaluating", done, of),
        )
    if json:
        print_json(evaluation.content)
    else:
        print_evaluation(evaluation)
        if not quiet:
            print(f"\ntables: {out or predictions}")
    if evaluation.content["failed"]:
        raise typer.Exit(FAULTS)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder written by `train`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file; default: RUN/report.html.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder written by `evaluate`, such as a test set's, or of anomaly maps; may be repeated."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """One self-contained HTML page about a run."""
    from scotoma.reporting.report import build_report

    with saying(quiet) as say:
        say.progress("drawing", 0, 0)
        path = build_report(run, out, evaluations=evaluation)
    if not quiet:
        print(path)


@app.command()
def corrupt(
    data: Data,
    out: Out,
    missing_lesions: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of lesions to remove.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="Which lesions go: 'random' or 'size' (smallest first).")
    ] = "random",
    boundary: Annotated[str | None, typer.Option(help="Move boundaries by up to this: 2mm or 3px.")] = None,
    pixels: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of pixels given a wrong class.")
    ] = None,
    keep_cases: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of cases that keep their mask.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    config: Config = None,
    settings: Set = None,
    json: Json = False,
) -> None:
    """Write a copy of a dataset whose training labels have known faults."""
    from scotoma.config import load_settings
    from scotoma.imperfections.corrupt import corrupt_dataset, parse_distance
    from scotoma.training.train import label_map_of, open_data

    wanted = load_settings(None, config, settings)
    dataset = open_data(data, wanted)
    result = corrupt_dataset(
        dataset,
        label_map_of(dataset, wanted),
        out,
        missing_lesions=missing_lesions,
        by=by,
        boundary=parse_distance(boundary) if boundary else None,
        pixels=pixels,
        keep_fraction=keep_cases,
        seed=seed,
    )
    if json:
        print_json(result)
    else:
        print(result["summary"])


def _guarded(run: Callable[[], None]) -> int:
    """Run the command line; an error is one line and an exit code."""
    try:
        run()
    except KeyboardInterrupt:
        print("scotoma: interrupted; `--resume` goes on where a run was.", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("SCOTOMA_DEBUG"):
            raise
        print(f"scotoma: {_sentence(error)}", file=sys.stderr)
        return UNUSABLE
    return 0


def _sentence(error: Exception) -> str:
    from scotoma.errors import ScotomaError

    if isinstance(error, ScotomaError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}."
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text} - `scotoma --debug ...` shows where."


def main() -> None:
    """Entry point of the `scotoma` command."""
    sys.exit(_guarded(app))


if __name__ == "__main__":
    main()
