"""What the data asks for: spacing, patch, batch, normalisation and the network's shape.

A plan is derived from the fingerprint and a memory budget, written to plan.json and can be edited there.
Axes are those of a preprocessed case: (slice axis, then the two fine ones).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from scotoma.config import Settings
from scotoma.data.fingerprint import Fingerprint
from scotoma.data.grid import Grid
from scotoma.data.labels import LabelMap
from scotoma.data.normalisation import Normalisation
from scotoma.errors import InputError, SettingsError
from scotoma.files import write_json

ANISOTROPIC = 3.0
"""A slice axis this many times coarser than the plane is not treated like the others."""

_LARGEST_PATCH = {2: 512, 3: 192}
_CPU_VOXELS = 2**18
_GPU_GIB, _CPU_GIB = 8.0, 3.0


class NetworkPlan(BaseModel):
    """The arguments of `networks.build_segmenter`."""

    model_config = ConfigDict(extra="forbid")

    architecture: Literal["unet", "resunet", "segresnet", "swinunetr"]
    channels: PositiveInt
    classes: PositiveInt
    dims: Literal[2, 3]
    features: list[PositiveInt] = Field(min_length=2)
    strides: list[list[PositiveInt]]
    kernels: list[list[PositiveInt]]
    deep_supervision: bool
    dropout: float = Field(ge=0, lt=1)
    feature_selection: list[str] = []

    @property
    def divisor(self) -> list[int]:
        """Patch sizes are multiples of this."""
        if self.architecture == "swinunetr":
            return [32] * self.dims
        if self.architecture == "segresnet":
            return [2 ** (len(self.features) - 1)] * self.dims
        return [math.prod(s[axis] for s in self.strides) for axis in range(self.dims)]

    @property
    def smallest(self) -> list[int]:
        """No patch is smaller: SwinUNETR's deepest features must not shrink to a single value."""
        return [2 * d if self.architecture == "swinunetr" else d for d in self.divisor]


class Plan(BaseModel):
    """Everything between a file and the network's input.

    Attributes:
        first_axis: which of R, A, S (0, 1, 2) is the slice axis of a preprocessed volume.
        spacing: (slice, row, column) in mm to resample to; None keeps every case as it is.
        patch: voxels; patch[0] is 1 for a 2-D or 2.5-D network.
        context: slices on either side that a 2.5-D network sees.
        batch: patches per step and device.
        flips: axes of a preprocessed case along which a mirrored image is as likely as the image; used
            in training and, on request, in prediction.
        reasons: why each was chosen, for the reader.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["2d", "2.5d", "3d"]
    pictures: bool
    first_axis: int = 2
    spacing: tuple[float, float, float] | None
    patch: tuple[PositiveInt, PositiveInt, PositiveInt]
    context: int = Field(default=0, ge=0)
    batch: PositiveInt
    flips: list[Annotated[int, Field(ge=0, le=2)]] = []
    channel_names: list[str]
    normalisation: list[Normalisation]
    label_map: LabelMap
    network: NetworkPlan
    memory_gib: float
    reasons: dict[str, str] = {}

    @property
    def classes(self) -> list[str]:
        return self.label_map.classes

    @property
    def patch_spacing(self) -> tuple[float, ...]:
        """Voxel size along the axes that the network sees."""
        spacing = self.spacing or (1.0, 1.0, 1.0)
        return spacing if self.network.dims == 3 else spacing[1:]

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))


def read_plan(path: Path) -> Plan:
    """Read a plan, perhaps edited by hand.

    Raises:
        InputError: not a plan, or one whose patch does not fit its network.
    """
    try:
        plan = Plan.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}.") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from None
    for sentence, holds in _misfits(plan).items():
        if holds:
            raise InputError(f"{path}: {sentence}.")
    net = plan.network
    sizes = zip(plan.patch[3 - net.dims :], net.divisor, net.smallest, strict=True)
    if any(size % divisor or size < least for size, divisor, least in sizes):
        raise InputError(
            f"{path}: patch {list(plan.patch)} must be a multiple of the network's strides {net.divisor}, at"
            f" least {net.smallest}; change one of them."
        )
    return plan


def _misfits(plan: Plan) -> dict[str, bool]:
    """What the parts of a plan must have in common, and whether it lacks that."""
    net = plan.network
    stages = len(net.features)
    dims = 3 if plan.kind == "3d" else 2
    channels = len(plan.channel_names) * (2 * plan.context + 1)
    return {
        f"kind is {plan.kind}, so network.dims must be {dims}": net.dims != dims,
        "patch[0] must be 1 for a network of slices": dims == 2 and plan.patch[0] != 1,
        "context is for 2.5d alone": plan.kind != "2.5d" and plan.context > 0,
        f"network.channels must be {channels}, channels x slices": net.channels != channels,
        f"network.classes must be {len(plan.classes)}, as the label map has": (
            net.classes != len(plan.classes)
        ),
        f"network.strides and network.kernels need one entry for each of the {stages} features": (
            len(net.strides) != stages or len(net.kernels) != stages
        ),
        f"network.strides and network.kernels need {dims} numbers a stage": (
            any(len(entry) != dims for entry in (*net.strides, *net.kernels))
        ),
        "normalisation needs one entry for each of channel_names": (
            len(plan.normalisation) != len(plan.channel_names)
        ),
    }


def choose_normalisation(found: Fingerprint, wanted: str = "auto") -> list[Normalisation]:
    """One normalisation per channel, by what the intensities are.

    Args:
        found: fingerprint of the training cases.
        wanted: "auto", or the kind for all channels.
    """
    kind = wanted
    if wanted == "auto":
        kind = {"colour": "unit", "grey": "unit", "ct": "ct", "mri": "mri"}[found.kind]
    chosen = []
    for channel in range(found.channels):
        if kind == "ct":
            inside = found.foreground or [case.whole[channel] for case in found.cases[:1]] * found.channels
            drawn = inside[channel]
            how = Normalisation(
                kind="ct",
                lower=drawn.p0_5,
                upper=drawn.p99_5,
                mean=drawn.mean,
                deviation=max(drawn.deviation, 1e-6),
            )
        elif kind == "unit":
            highest = max(case.whole[channel].maximum for case in found.cases)
            lowest = min(case.whole[channel].minimum for case in found.cases)
            eight_bits = lowest >= 0 and highest <= 255
            bounds = (0.0, 255.0) if eight_bits and highest > 1 else (lowest, highest)
            how = Normalisation(kind="unit", lower=bounds[0], upper=bounds[1])
        else:
            how = Normalisation(kind="mri" if kind == "mri" else "zscore")
        chosen.append(how)
    return chosen


def make_plan(
    grids: Sequence[Grid],
    normalisation: list[Normalisation],
    channel_names: list[str],
    label_map: LabelMap,
    settings: Settings,
    accelerator: bool,
) -> Plan:
    """Derive a plan.

    Args:
        grids: where the training images lie.
        normalisation: one per channel (see `choose_normalisation`).
        channel_names: one per channel.
        label_map: classes and their values in the files.
        settings: sections `plan` and `network` overrule what is derived.
        accelerator: whether a GPU will train; else the plan fits a processor.

    Raises:
        SettingsError: a setting that cannot be met, such as a patch that the network cannot divide.
    """
    wanted, net = settings.plan, settings.network
    reasons: dict[str, str] = {}
    pictures = grids[0].ndim == 2
    first_axis, shapes, spacings = _canonical_shapes(grids)
    spacing = _target_spacing(spacings, pictures, wanted.spacing, reasons)
    if spacing is None:
        median_shape = np.median(shapes, axis=0)
        fine = np.median(spacings, axis=0)
    else:
        median_shape = np.median(shapes * spacings / np.array(spacing), axis=0)
        fine = np.array(spacing)
    kind = _kind(wanted.kind, pictures, median_shape, reasons)
    dims = 3 if kind == "3d" else 2
    context = wanted.context if kind == "2.5d" else 0

    budget = wanted.memory_gib or (_GPU_GIB if accelerator else _CPU_GIB)
    stem_size = net.stem or (1 if accelerator or net.architecture in ("segresnet", "swinunetr") else 2)
    if net.stem is None and stem_size > 1:
        reasons["network.stem"] = "2 on a processor: a tenth of the work, logits still at full resolution"
    axes = slice(3 - dims, 3)
    near = fine[axes]
    stem = [stem_size if s <= 2 * near.min() else 1 for s in near]
    base = net.features or (32 if accelerator else 16)
    depth = net.depth if isinstance(base, int) else len(base)
    if not isinstance(base, int) and net.architecture not in ("unet", "resunet"):
        raise SettingsError(
            f"network.features: {net.architecture} takes the features of its first stage alone."
        )
    if net.depth not in (None, depth):
        raise SettingsError(f"network.depth = {net.depth}: network.features lists {depth} stages; drop one.")
    if net.features is None and not accelerator:
        reasons["network.features"] = "16 on a processor: more steps in the same time beat a wider network"
    cap = net.max_features or (320 if dims == 3 else 512)

    def build(patch: np.ndarray) -> NetworkPlan:
        strides, kernels = _topology(patch, near, stem, depth)
        if not isinstance(base, int) and len(strides) != depth:
            raise SettingsError(
                f"network.features = {base}: a patch of {patch.tolist()} can be halved for {len(strides)}"
                " stages; list as many, or set a larger plan.patch."
            )
        features = [min(cap, base * 2**n) for n in range(len(strides))] if isinstance(base, int) else base
        return NetworkPlan(
            architecture=net.architecture,
            channels=len(channel_names) * (2 * context + 1),
            classes=len(label_map.classes),
            dims=dims,
            features=features,
            strides=strides,
            kernels=kernels,
            deep_supervision=net.deep_supervision and net.architecture in ("unet", "resunet"),
            dropout=net.dropout,
            feature_selection=net.feature_selection,
        )

    if wanted.patch is not None:
        patch = _given_patch(wanted.patch, dims)
        network = build(patch)
        if (patch < network.smallest).any():
            raise SettingsError(
                f"plan.patch = {wanted.patch}: {net.architecture} needs at least {network.smallest}."
            )
        if any(n % d for n, d in zip(patch, network.divisor, strict=True)):
            raise SettingsError(
                f"plan.patch = {wanted.patch}: not divisible by the network's strides {network.divisor};"
                " choose multiples of them, or a smaller network.depth."
            )
        reasons["patch"] = "as set"
    else:
        patch, network = _largest_patch(median_shape[axes], dims, build, budget, accelerator, reasons)
    if net.depth is not None and len(network.strides) < net.depth:
        stages = len(network.strides)
        reasons["network.depth"] = f"{stages}, not {net.depth}: the patch can be halved for {stages} stages"
    batch = wanted.batch or _batch(patch, network, budget, accelerator, shapes, reasons)
    flips = _flips(pictures, first_axis, dims, label_map.classes, reasons)
    size = (1, *patch.tolist()) if dims == 2 else tuple(patch.tolist())
    return Plan(
        kind=kind,
        pictures=pictures,
        first_axis=first_axis,
        spacing=spacing,
        patch=size,
        context=context,
        batch=batch,
        flips=flips,
        channel_names=channel_names,
        normalisation=normalisation,
        label_map=label_map,
        network=network,
        memory_gib=round(_memory_gib(patch, network, batch), 2),
        reasons=reasons,
    )


def slice_axis(grids: Sequence[Grid]) -> int:
    """Which of R, A, S (0, 1, 2) is the slice axis: the coarsest one where one is coarser, else S."""
    from scotoma.data.resampling import canonical_grid

    if grids[0].ndim == 2:
        return 2
    ras = np.array([canonical_grid(grid, 2).spacing for grid in grids])[:, [2, 1, 0]]
    median = np.median(ras, axis=0)
    return int(median.argmax()) if median.max() > 1.2 * median.min() else 2


def _canonical_shapes(grids: Sequence[Grid]) -> tuple[int, np.ndarray, np.ndarray]:
    """The slice axis, and (cases, 3) shapes and spacings of the preprocessed cases at native spacing."""
    from scotoma.data.resampling import canonical_grid

    first_axis = slice_axis(grids)
    turned = [canonical_grid(grid, first_axis) for grid in grids]
    return first_axis, np.array([t.shape for t in turned]), np.array([t.spacing for t in turned])


def _target_spacing(
    spacings: np.ndarray, pictures: bool, wanted: list[float] | None, reasons: dict[str, str]
) -> tuple[float, float, float] | None:
    if wanted is not None:
        if len(wanted) != 3 or min(wanted) <= 0:
            raise SettingsError(f"plan.spacing = {wanted}: give three positive numbers, slice axis first.")
        reasons["spacing"] = "as set"
        return (wanted[0], wanted[1], wanted[2])
    if pictures:
        reasons["spacing"] = "pictures keep their pixels"
        return None
    if (spacings.max(axis=0) <= 1.01 * spacings.min(axis=0)).all():
        reasons["spacing"] = "all cases agree"
    else:
        reasons["spacing"] = "median of the cases"
    median = np.median(spacings, axis=0)
    if median[0] > ANISOTROPIC * median[1:].min():
        finer = float(np.percentile(spacings[:, 0], 10))
        median[0] = max(finer, median[1:].max())
        reasons["spacing"] += "; along the coarse slice axis its lower tenth"
    return (float(median[0]), float(median[1]), float(median[2]))


def _kind(
    wanted: str, pictures: bool, shape: np.ndarray, reasons: dict[str, str]
) -> Literal["2d", "2.5d", "3d"]:
    if pictures:
        if wanted not in ("auto", "2d"):
            raise SettingsError(
                f"plan.kind = {wanted}: the images are pictures, which only a 2d network takes."
            )
        reasons["kind"] = "pictures"
        return "2d"
    if wanted in ("2d", "2.5d", "3d"):
        reasons["kind"] = "as set"
        return wanted  # type: ignore[return-value]
    if shape[0] < 8:
        reasons["kind"] = f"only {shape[0]:.0f} slices"
        return "2d"
    reasons["kind"] = "volumes"
    return "3d"


def _flips(
    pictures: bool, first_axis: int, dims: int, classes: list[str], reasons: dict[str, str]
) -> list[int]:
    """Pictures have no upright; in a patient only left and right are alike, unless a class names a side."""
    sided = [
        name for name in classes if {"left", "right", "l", "r"} & set(re.split(r"[^a-z]+", name.lower()))
    ]
    if sided:
        reasons["flips"] = f"none, since '{sided[0]}' tells the sides apart"
        return []
    if pictures:
        reasons["flips"] = "pictures have no upright"
        return [1, 2]
    left_right = 0 if first_axis == 0 else 2
    reasons["flips"] = "left and right alone: the other directions of a body differ"
    return [left_right] if left_right >= 3 - dims else []


def _topology(
    patch: np.ndarray, spacing: np.ndarray, stem: list[int], depth: int | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernels per stage: axes are halved while they are 8 voxels or more, finest first."""
    size, near = patch / np.array(stem), spacing * np.array(stem)
    strides = [list(stem)]
    kernels = [[3 if s < 2 * near.min() else 1 for s in near]]
    while depth is None or len(strides) < depth:
        can = size >= 8
        if not can.any() or (depth is None and len(strides) >= 6):
            break
        halve = can & (near < 2 * near[can].min())
        strides.append([2 if h else 1 for h in halve])
        size, near = np.where(halve, size / 2, size), np.where(halve, near * 2, near)
        kernels.append([3 if s < 2 * near.min() else 1 for s in near])
    if len(strides) < 2:
        strides.append([1] * len(stem))
        kernels.append([3] * len(stem))
    return strides, kernels


def _memory_gib(patch: np.ndarray, network: NetworkPlan, batch: int) -> float:
    """Rough peak of a training step in float32: what the convolutions keep for the backward pass."""
    values = 0.0
    scale = np.ones(len(patch))
    for n, (features, stride) in enumerate(zip(network.features, network.strides, strict=True)):
        scale = scale * np.array(stride)
        voxels = float(np.prod(patch / scale))
        blocks = 2 if n == len(network.features) - 1 else 4
        values += voxels * features * (3 * blocks + 2)
        if n == 0:
            values += 6 * network.classes * float(np.prod(patch))
    residual = 1.6 if network.architecture in ("resunet", "segresnet") else 1.0
    residual = 3.0 if network.architecture == "swinunetr" else residual
    return batch * values * 4 * 1.5 * residual / 2**30


def _given_patch(patch: list[int], dims: int) -> np.ndarray:
    if len(patch) == 3 and dims == 2 and patch[0] == 1:
        patch = patch[1:]
    if len(patch) != dims or min(patch) < 1:
        raise SettingsError(f"plan.patch = {patch}: this network needs {dims} positive sizes.")
    return np.array(patch)


def _largest_patch(median, dims, build, budget, accelerator, reasons):  # type: ignore[no-untyped-def]
    """The median case, cut down along its longest axis until two patches fit the budget."""
    limit = _LARGEST_PATCH[dims]
    patch = np.minimum(np.maximum(np.round(median), 8), limit).astype(int)
    cut = False
    while True:
        divisor = np.array(build(patch).divisor)
        rounded = np.maximum(-(-patch // divisor) * divisor, build(patch).smallest)
        network = build(rounded)
        divisor = np.array(network.divisor)
        if (rounded % divisor == 0).all():
            fits = _memory_gib(rounded, network, 2) <= budget
            quick = accelerator or 2 * np.prod(rounded) <= _CPU_VOXELS * (1 if dims == 3 else 2)
            smallest = (rounded <= np.maximum(2 * divisor, 16)).all()
            if (fits and quick) or smallest:
                reasons["patch"] = "median case, cut to the budget" if cut else "median case"
                return rounded, network
        cut = True
        longest = int(np.argmax(patch))
        patch[longest] = max(8, int(patch[longest] * 0.9))


def _batch(
    patch: np.ndarray,
    network: NetworkPlan,
    budget: float,
    accelerator: bool,
    shapes: np.ndarray,
    reasons: dict[str, str],
) -> int:
    memory = int(budget / _memory_gib(patch, network, 1))
    whole = float(shapes.prod(axis=1).sum())
    share = max(2, int(0.05 * whole / np.prod(patch)))
    bounds = {"the memory budget": memory, "5 % of the data a step": share, "32 patches": 32}
    if not accelerator:
        bounds["a processor's pace"] = int(_CPU_VOXELS * (1 if network.dims == 3 else 2) / np.prod(patch))
    batch = max(2, min(bounds.values()))
    reasons["batch"] = f"limited by {min(bounds, key=bounds.__getitem__)}"
    return batch
