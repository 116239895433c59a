"""Plans: what is derived from grids and budgets, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scotoma.config import load_settings
from scotoma.data.grid import Grid
from scotoma.data.labels import LabelMap
from scotoma.data.normalisation import Normalisation
from scotoma.data.plan import _memory_gib, make_plan, read_plan
from scotoma.errors import InputError, SettingsError
from scotoma.training.run import new_segmenter

LABELS = LabelMap.plain(["background", "lesion"])


def plan_for(grids, accelerator=False, **overrides):
    wanted = load_settings(overrides=overrides)
    return make_plan(grids, [Normalisation(kind="mri")], ["t1"], LABELS, wanted, accelerator)


def test_isotropic_volumes():
    plan = plan_for([Grid.of_spacing((35, 51, 35), (1.0, 1.0, 1.0))] * 3)
    assert plan.kind == "3d"
    assert plan.spacing == (1.0, 1.0, 1.0)
    assert plan.patch == (40, 56, 40)


def test_thick_slices_keep_their_axis_coarse():
    plan = plan_for([Grid.of_spacing((256, 256, 40), (0.9, 0.9, 6.5))] * 3, accelerator=True)
    assert plan.first_axis == 2
    assert plan.spacing == pytest.approx((6.5, 0.9, 0.9))
    assert plan.network.strides[1] == [1, 2, 2]
    assert plan.network.kernels[0] == [1, 3, 3]


def test_sagittal_slices_come_first():
    """The slice axis is found in anatomical space, however the file stores it."""
    affine = np.array([[0, 0, 5.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    plan = plan_for([Grid((128, 128, 30), affine)] * 2)
    assert plan.first_axis == 0
    assert plan.spacing == pytest.approx((5.0, 1.0, 1.0))


def test_few_slices_make_a_2d_network():
    plan = plan_for([Grid.of_spacing((128, 128, 5), (1.0, 1.0, 8.0))])
    assert plan.kind == "2d"
    assert plan.patch[0] == 1


def test_pictures():
    plan = plan_for([Grid.of_spacing((256, 320), (1.0, 1.0), "px")] * 30)
    assert plan.kind == "2d"
    assert plan.pictures
    assert plan.spacing is None
    with pytest.raises(SettingsError, match="pictures"):
        plan_for([Grid.of_spacing((64, 64), (1.0, 1.0))], **{"plan.kind": "3d"})


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 600)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 8.0)] * 3),
    accelerator=st.booleans(),
    kind=st.sampled_from(["auto", "2d", "2.5d", "3d"]),
    architecture=st.sampled_from(["unet", "resunet", "segresnet", "swinunetr"]),
)
def test_every_grid_gets_a_plan_that_fits_its_network_and_budget(
    shape, spacing, accelerator, kind, architecture
):
    changes = {"plan.kind": kind, "network.architecture": architecture}
    plan = plan_for([Grid.of_spacing(shape, spacing)] * 8, accelerator, **changes)
    dims = plan.network.dims
    for size, divisor in zip(plan.patch[3 - dims :], plan.network.divisor, strict=True):
        assert size % divisor == 0
    patch = np.array(plan.patch[3 - dims :])
    small = (patch <= np.maximum(2 * np.array(plan.network.divisor), 16)).all()
    assert small or _memory_gib(patch, plan.network, 2) <= (8 if accelerator else 3)
    assert plan.batch >= 2


@pytest.mark.parametrize("kind", ["2d", "2.5d", "3d"])
def test_the_network_of_a_plan_is_built_as_planned(kind):
    plan = plan_for(
        [Grid.of_spacing((40, 40, 40), (1.0, 1.0, 1.0))], **{"plan.kind": kind, "network.features": 4}
    )
    net = new_segmenter(plan)
    assert list(net.divisor) == plan.network.divisor
    assert plan.network.channels == (3 if kind == "2.5d" else 1)


def test_settings_overrule():
    grids = [Grid.of_spacing((64, 64, 64), (1.0, 1.0, 1.0))]
    changes = {"plan.patch": [32, 32, 32], "plan.batch": 3, "plan.spacing": [2, 2, 2], "network.depth": 3}
    plan = plan_for(grids, **changes)
    assert (plan.patch, plan.batch, plan.spacing) == ((32, 32, 32), 3, (2.0, 2.0, 2.0))
    assert len(plan.network.strides) == 3
    with pytest.raises(SettingsError, match="not divisible"):
        plan_for(grids, **{"plan.patch": [30, 32, 32], "network.depth": 3})
    with pytest.raises(SettingsError, match="three positive"):
        plan_for(grids, **{"plan.spacing": [1, 1]})
    assert plan_for(grids, **{"network.depth": 12}).reasons["network.depth"].startswith("3, not 12")


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_swinunetr_keeps_more_than_one_value_at_its_deepest(kind):
    changes = {"network.architecture": "swinunetr", "plan.kind": kind}
    plan = plan_for([Grid.of_spacing((24, 24, 20), (1.0, 1.0, 1.0))], **changes)
    assert set(plan.patch) <= {1, 64}
    with pytest.raises(SettingsError, match="at least"):
        plan_for(
            [Grid.of_spacing((40, 40, 40), (1.0, 1.0, 1.0))],
            **changes,
            **{"plan.patch": [32] * (2 if kind == "2d" else 3)},
        )


def test_features_of_every_stage():
    grids = [Grid.of_spacing((40, 56, 40), (1.0, 1.0, 1.0))]
    plan = plan_for(grids, **{"network.features": [8, 32, 64], "network.stem": 1})
    assert plan.network.features == [8, 32, 64]
    assert len(plan.network.strides) == 3
    assert plan_for(grids, **{"network.features": 8}).network.features == [8, 16, 32]
    with pytest.raises(SettingsError, match="can be halved for 3 stages"):
        plan_for(grids, **{"network.features": [8, 16, 32, 64, 64]})
    with pytest.raises(SettingsError, match="lists 2 stages"):
        plan_for(grids, **{"network.features": [8, 16], "network.depth": 3})
    with pytest.raises(SettingsError, match="first stage alone"):
        plan_for(grids, **{"network.features": [8, 16], "network.architecture": "segresnet"})


def test_flips_follow_anatomy():
    isotropic, sagittal = (
        Grid.of_spacing((64, 64, 64), (1.0, 1.0, 1.0)),
        Grid.of_spacing((20, 64, 64), (5.0, 1.0, 1.0)),
    )
    assert plan_for([isotropic]).flips == [2]
    assert plan_for([sagittal]).flips == [0]
    assert plan_for([sagittal], **{"plan.kind": "2d"}).flips == []
    assert plan_for([Grid.of_spacing((64, 64), (1.0, 1.0))]).flips == [1, 2]
    sided = LabelMap.plain(["background", "left kidney", "right kidney"])
    plan = make_plan([isotropic], [Normalisation(kind="mri")], ["t1"], sided, load_settings(), False)
    assert plan.flips == []
    assert "left kidney" in plan.reasons["flips"]


def test_an_edited_plan_is_checked(tmp_path):
    plan = plan_for([Grid.of_spacing((64, 64, 64), (1.0, 1.0, 1.0))])
    path = tmp_path / "plan.json"
    plan.save(path)
    assert read_plan(path) == plan
    content = json.loads(path.read_text())
    for name, value, sentence in (
        ("patch", [31, 32, 32], "multiple of the network's strides"),
        ("patch", [32, -32, 32], "patch.1: Input should be greater than 0"),
        ("patsch", 1, "patsch"),
        ("batch", 0, "batch: Input should be greater than 0"),
        ("flips", [7], "flips.0"),
        ("kind", "2d", "network.dims must be 2"),
        ("network.channels", 3, "network.channels must be 1"),
        ("network.classes", 5, "network.classes must be 2"),
        ("network.dims", 2, "network.dims must be 3"),
        ("network.features", [8, 16], "one entry for each of the 2 features"),
        ("normalisation", [], "normalisation needs one entry"),
    ):
        changed = json.loads(json.dumps(content))
        *inside, last = name.split(".")
        (changed[inside[0]] if inside else changed)[last] = value
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=sentence):
            read_plan(path)
    path.write_text("{")
    with pytest.raises(InputError, match="JSON"):
        read_plan(path)
