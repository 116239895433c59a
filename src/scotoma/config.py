"""Settings of a run: typed, checked, and saved as they were used.

A setting comes, later ones winning, from the defaults below, the recipe, the recipe's variant, a settings
file, and ``--set section.name=value``. Unknown names are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from scotoma.errors import SettingsError
from scotoma.files import write_text

Width = Annotated[int, Field(ge=4)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class DataSettings(Section):
    """Which files are images, masks, channels and patients, and what the values in a mask mean."""

    labels: str | None = Field(
        default=None, description="folder (or, in case folders, file stem) of the masks"
    )
    channels: list[str] | None = Field(
        default=None, description="file stems of the channels in case folders, suffixes in paired folders"
    )
    patient_pattern: str | None = Field(
        default=None, description="regular expression whose first group is the patient in a case id"
    )
    label_map: dict[int, int | Literal["ignore"]] | None = Field(
        default=None, description="value in the file -> class index or 'ignore'; default: as `check` proposes"
    )
    classes: list[str] | None = Field(default=None, description="class names, background first")
    instances: bool | None = Field(
        default=None, description="mask values are object ids: every non-zero value is class 1"
    )
    annotated: dict[str, list[int]] = Field(
        default_factory=dict, description="case id -> foreground classes drawn there, where not all are"
    )
    tolerance_mm: float = Field(
        default=0.01, gt=0, description="how far an image's and its mask's corner voxels may lie apart"
    )
    cache: str | None = Field(default=None, description="folder of preprocessed cases; default: RUN/cache")


class SplitSettings(Section):
    """Which cases train, validate and test. Cases of one patient stay together."""

    test: float = Field(
        default=0.0, ge=0, lt=1, description="share of the cases set aside: the last ones by name"
    )
    folds: int = Field(
        default=5, ge=2, description="the rest is cut into this many folds, at random by the seed"
    )
    fold: int | Literal["all"] = Field(
        default=0, description="the fold that validates; 'all' trains one model per fold"
    )
    labelled: float | list[str] | None = Field(
        default=None,
        description="learn from this share of the patients, drawn by the seed, or from these cases, as if no"
        " other had a mask",
    )
    file: str | None = Field(
        default=None, description="JSON with lists of case ids: train, validation and, if wanted, test"
    )


class PlanSettings(Section):
    """What the plan derives from the data unless it is given here."""

    kind: Literal["auto", "2d", "2.5d", "3d"] = "auto"
    memory_gib: float | None = Field(
        default=None, gt=0, description="budget of a training step; default 8 on a GPU, 3 on CPU"
    )
    spacing: list[float] | None = Field(
        default=None, description="mm, slice axis first; default: median of the data"
    )
    patch: list[int] | None = Field(default=None, description="voxels, slice axis first")
    batch: int | None = Field(default=None, ge=1, description="patches per step and device")
    context: int = Field(default=1, ge=1, description="slices seen on either side by a 2.5-D network")
    normalisation: Literal["auto", "mri", "ct", "unit", "zscore"] = "auto"


class NetworkSettings(Section):
    """The segmenter."""

    architecture: Literal["unet", "resunet", "segresnet", "swinunetr"] = "unet"
    features: Width | Annotated[list[Width], Field(min_length=2)] | None = Field(
        default=None,
        description="features of the first stage, doubled from stage to stage, or a list with those of every"
        " stage; default 32 on a GPU, 16 on CPU",
    )
    max_features: int | None = Field(
        default=None, ge=4, description="features of the deepest stage; default 320 in 3-D, 512 in 2-D"
    )
    depth: int | None = Field(
        default=None, ge=2, description="number of stages; default: until the patch is 4 voxels wide"
    )
    stem: int | None = Field(
        default=None, ge=1, le=4, description="stride of the first convolution; default 1 on a GPU, 2 on CPU"
    )
    deep_supervision: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)
    feature_selection: list[str] = Field(
        default_factory=list,
        description="stages followed by uncertainty-aware feature selection: encoder, decoder, decoder.0 ...",
    )
    prior_bias: bool | None = Field(
        default=None,
        description="start the last layer at the log share of each class, so that nothing is lesion at first;"
        " default: where a class fills less than 2 % of the voxels",
    )


class TrainingSettings(Section):
    """The loop."""

    steps: int = Field(default=2500, ge=1, description="optimiser steps")
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="instead of steps: as many as fit, timed on this machine before the start",
    )
    epoch_steps: int = Field(default=100, ge=1, description="steps between two validations and checkpoints")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=50, ge=0)
    gradient_clip: float = Field(default=12.0, gt=0, description="largest norm of the gradient")
    accumulate: int = Field(default=1, ge=1, description="batches whose gradients are summed before a step")
    average: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is what is validated and kept; 0: none",
    )
    foreground_share: float = Field(
        default=0.5, ge=0, le=1, description="share of patches centred on a foreground voxel"
    )
    augmentation: bool = True
    affine: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="share of patches rotated and zoomed, where there is augmentation",
    )
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    devices: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    workers: int | None = Field(
        default=None, ge=0, description="loader processes; default: processors - 1, at most 8"
    )
    validation_patches: int = Field(
        default=32, ge=1, description="fixed patches of the validation cases seen every epoch"
    )
    select: Literal["best", "last", "trusted"] = Field(
        default="best",
        description="weights kept: best by validation Dice; last; or trusted: the last where the objective"
        " doubts the masks, otherwise the best",
    )
    early_stopping: int | None = Field(
        default=None, ge=1, description="epochs without a better validation Dice before the end"
    )
    collapse_patience: int = Field(
        default=5,
        ge=1,
        description="validations in a row that are all background or all foreground before the alarm",
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _number_to_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


class PredictionSettings(Section):
    overlap: float = Field(default=0.5, ge=0, lt=1, description="of neighbouring windows")
    flips: bool = Field(default=False, description="average over inputs mirrored along the plan's flips")
    smooth_stem: bool = Field(
        default=True,
        description="where the network's stem is strided, average over the image moved by half the stride",
    )


class AnomalySettings(Section):
    """Segmentation without labels. The numbers of the method stand in its recipe, not here."""

    mode: Literal["patient", "controls", "localized"] = Field(
        description="whose voxels the one-class SVM is fitted to: the patient's own, the normal cases', or,"
        " one machine per voxel, the normal cases' at that place"
    )
    patch: int = Field(ge=9, description="side of the patches in voxels: 9, 15, 21, ...")
    filters: tuple[int, int, int] = Field(description="widths of the encoder's first three convolutions")
    latent: int = Field(ge=1, description="length of the latent vectors")
    dimensions: Literal[2, 3] = Field(description="2 for patches in a slice, 3 for cubes")
    epochs: int = Field(
        ge=1, description="passes over the normal cases; a fresh partner for each in every one"
    )
    locations: int = Field(ge=1, description="patches drawn of each case in an epoch")
    batch: int = Field(ge=2, description="pairs per step")
    learning_rate: float = Field(gt=0, description="of Adam")
    cosine_weight: float = Field(ge=0, description="of the similarity of a pair's latent vectors in the loss")
    fits: int = Field(ge=1, description="machines whose decisions are averaged")
    samples: int = Field(ge=2, description="voxels each machine is fitted to")
    nu: float = Field(gt=0, le=1, description="of the machines")
    latent_weight: float = Field(ge=0, description="of the latents beside the other features; 0: left out")
    centre_sigmas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        description="widths, in voxels, at which intensities at the patch's centre are features; [] for none"
    )
    residual: bool = Field(description="take the error of the reconstruction as a feature")
    standardise: Literal["none", "patient", "location"] = Field(
        description="features as they are, standardised within the patient, or by what is normal at the place"
    )
    trim: float = Field(
        ge=0, lt=1, description="share of the voxels, the most anomalous, left out in a refit"
    )
    brain: str = Field(
        default="auto",
        description="what is scored: 'nonzero' voxels, an 'estimate', the 'whole' image, 'auto' for one of"
        " these, or masks: a folder (of that name beside the images, or a path), or in case folders"
        " the stem of the file",
    )
    exclude: str = Field(
        default="none",
        description="what is scored at the minimum: 'none', an estimate of the cerebrospinal fluid ('csf'),"
        " or masks, named as for 'brain'",
    )
    registered: Literal["auto", "yes", "no", "align"] = Field(
        default="auto",
        description="whether equal voxels of different cases show the same place: 'yes', 'no' (no pairs),"
        " 'align' them first, or 'auto' by their grids",
    )
    scaling: Literal["auto", "percentiles", "unit"] = Field(
        default="auto",
        description="of intensities: 1st to 99th 'percentiles' inside the brain, or the 'unit' range of the"
        " file type; 'auto' takes the latter for pictures of eight bits",
    )
    threshold: float = Field(
        gt=0, lt=1, description="share of the held-out normal cases' voxels that lie below a mask's threshold"
    )
    candidate_threshold: float = Field(gt=0, lt=1, description="the same for the list of candidate lesions")
    candidate_voxels: int = Field(ge=1, description="smallest connected piece in a mask and in the list")

    @field_validator("registered", mode="before")
    @classmethod
    def _truth_to_text(cls, value: Any) -> Any:
        # YAML reads yes and no as true and false
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

    @field_validator("patch")
    @classmethod
    def _fits(cls, value: int) -> int:
        if value % 6 != 3:
            raise ValueError("a patch is 9 voxels wide plus a multiple of 6 (15, 21, 27, ...)")
        return value

    @field_validator("filters")
    @classmethod
    def _wide(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(value) < 1:
            raise ValueError("the widths of three convolutions, each at least 1")
        return value

    @model_validator(mode="after")
    def _some_feature(self) -> AnomalySettings:
        if not (self.latent_weight or self.centre_sigmas or self.residual):
            raise ValueError("no feature is left; set latent_weight, centre_sigmas or residual")
        return self


class Settings(Section):
    """Everything a run can be told."""

    recipe: str = "baseline"
    variant: str | None = Field(
        default=None,
        description="a variant that the recipe names, such as 'published': the paper's form, verbatim",
    )
    seed: int = Field(default=0, ge=0)
    data: DataSettings = Field(default_factory=DataSettings)
    split: SplitSettings = Field(default_factory=SplitSettings)
    plan: PlanSettings = Field(default_factory=PlanSettings)
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    objective: dict[str, Any] = Field(default_factory=dict)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    prediction: PredictionSettings = Field(default_factory=PredictionSettings)
    anomaly: AnomalySettings | None = Field(
        default=None, description="of recipes that learn from normal cases alone; None: of the others"
    )

    def save(self, path: Path) -> None:
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("scotoma.recipes")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_settings(
    recipe: str | None = None, file: Path | None = None, overrides: list[str] | dict[str, Any] | None = None
) -> Settings:
    """Put the settings of a run together.

    Args:
        recipe: name of a recipe of the package, or path of a YAML file in the same form.
        file: YAML with any of the settings.
        overrides: ``["training.steps=500"]`` or ``{"training.steps": 500}``.

    Raises:
        SettingsError: unknown recipe or setting, or a value of the wrong type.

    Example:
        >>> load_settings("baseline", overrides=["training.steps=500"]).training.steps
        500
    """
    content: dict[str, Any] = {}
    if file is not None:
        content = _read_yaml(file)
    pairs = _split_overrides(overrides or [])
    chosen = str(recipe or content.get("recipe") or "baseline")
    merged = _read_recipe(chosen)
    variants = merged.pop("variants", {})
    variant = dict(pairs).get("variant", content.get("variant"))
    if variant is not None:
        if variant not in variants:
            there = f"there are: {', '.join(variants)}." if variants else "it has none."
            raise SettingsError(f"the recipe '{Path(chosen).stem}' has no variant '{variant}'; {there}")
        _merge(merged, variants[variant])
    without_labels = merged.get("anomaly") is not None
    if content.get("anomaly", ...) is None:
        # as the saved settings of another recipe say; it is the recipe that decides
        del content["anomaly"]
    if not without_labels and ("anomaly" in content or any(n.split(".")[0] == "anomaly" for n, _ in pairs)):
        raise SettingsError(
            f"anomaly.*: the recipe '{Path(chosen).stem}' learns from labels and has no such settings;"
            " choose --recipe no-labels."
        )
    _merge(merged, content)
    merged["recipe"] = Path(chosen).stem
    _override(merged, pairs)
    return parse_settings(merged)


def read_settings(path: Path) -> Settings:
    """Read the settings saved with a run."""
    return parse_settings(_read_yaml(path), source=str(path))


def resumed_settings(
    saved: Path, recipe: str | None = None, file: Path | None = None, overrides: list[str] | None = None
) -> Settings:
    """The settings saved with a run, after making sure that what is asked for now does not contradict them.

    Args:
        saved: the run's config.yaml.
        recipe, file, overrides: as for `load_settings`; may all be left out.

    Raises:
        SettingsError: something else is asked for than the run was started with.
    """
    before = read_settings(saved)
    asked = before.model_dump()
    if recipe is not None or file is not None:
        asked = load_settings(recipe, file, overrides).model_dump()
    else:
        _override(asked, _split_overrides(overrides or []))
        asked = parse_settings(asked).model_dump()
    then, now = _flat(before.model_dump()), _flat(asked)
    if now["training.minutes"] is not None:  # became a number of steps when the run began
        for name in ("training.minutes", "training.steps", "anomaly.epochs"):
            now[name] = then.get(name)
    for name in {**then, **now}:
        if now.get(name) != then.get(name):
            raise SettingsError(
                f"{saved.parent}: was started with {name} = {then.get(name)!r}, not {now.get(name)!r}; leave"
                " that out to go on with this run, or choose another folder."
            )
    return before


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in content.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def _override(content: dict[str, Any], pairs: list[tuple[str, Any]]) -> None:
    for name, value in pairs:
        target = content
        *sections, last = name.split(".")
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise SettingsError(f"--set {name}: '{section}' is a value, not a section of settings.")
        target[last] = value


def parse_settings(content: dict[str, Any], source: str = "settings") -> Settings:
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise SettingsError(_explain(error, source)) from None


def _split_overrides(overrides: list[str] | dict[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(overrides, dict):
        return list(overrides.items())
    pairs = []
    for text in overrides:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise SettingsError(f"--set {text}: write it as section.name=value.")
        try:
            pairs.append((name.strip(), yaml.safe_load(value)))
        except yaml.YAMLError:
            raise SettingsError(f"--set {text}: the value is not valid YAML.") from None
    return pairs


def _read_recipe(recipe: str) -> dict[str, Any]:
    if recipe.endswith((".yaml", ".yml")):
        return _read_yaml(Path(recipe))
    if recipe not in recipe_names():
        close = difflib.get_close_matches(recipe, recipe_names(), 1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(recipe_names())}."
        raise SettingsError(f"no recipe '{recipe}'; {hint}")
    return yaml.safe_load(resources.files("scotoma.recipes").joinpath(f"{recipe}.yaml").read_text("utf-8"))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid YAML ({str(error).splitlines()[0]}).") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected settings as 'section: ...', found {type(content).__name__}.")
    return content


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _explain(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, _setting_names(Settings), 1, 0.5)
        hint = f"did you mean '{close[0]}'?" if close else "`scotoma train --help` names the settings."
        return f"{source}: unknown setting '{where}'; {hint}"
    if first["type"] == "missing":
        return f"{source}: {where} is missing; take it over from the recipe this one is modelled on."
    # Of a setting with several types pydantic names each one that it is not.
    known = set(_setting_names(Settings))
    name = max((n for n in known if f"{where}.".startswith(f"{n}.")), key=len, default=where)
    same = [e for e in error.errors() if ".".join(map(str, e["loc"])).startswith(f"{name}.")]
    found = [first]
    if len(same) > 1:
        where, found = name, same
    messages = dict.fromkeys(e["msg"].removeprefix("Value error, ") for e in found)
    shown = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
    return f"{source}: {where}{shown}: {', or '.join(m[0].lower() + m[1:] for m in messages)}."


def _setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += _setting_names(kind, f"{prefix}{name}.")
        names.append(f"{prefix}{name}")
    return names
