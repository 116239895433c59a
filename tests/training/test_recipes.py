"""Every recipe trains, in two and three dimensions, in half precision, resumed, and on two processes."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
import torch
from resuming import interrupted_and_resumed
from safetensors.torch import load_file

from scotoma.config import load_settings, recipe_names
from scotoma.data.plan import read_plan
from scotoma.errors import SettingsError
from scotoma.networks.extractors import random_extractor
from scotoma.training.fit import build_module, contrasted_stages
from scotoma.training.module import to_unit_range
from scotoma.training.train import train
from small_data import QUICK

TERMS = {
    "baseline": {"ce", "dice"},
    "missing-lesions": {"lopsided", "bootstrapped_share", "dice"},
    "noisy-pixels": {"ce", "dice", "trimmed_share"},
    "rare-target": {"ce", "dice", "content", "content_weight"},
    "few-labels": {"ce", "dice", "dragsaw"},
}


def settings_of(recipe, **changes):
    name, _, variant = recipe.partition(":")
    if variant:
        changes["variant"] = variant
    return load_settings(name, overrides={**QUICK, "training.steps": 4, **changes})


def test_every_recipe_with_labels_is_tried_here():
    assert set(TERMS) == set(recipe_names()) - {"no-labels"}


@pytest.mark.parametrize("recipe", TERMS)
@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_recipe_trains_and_logs_its_terms(recipe, kind, request, tmp_path):
    data = request.getfixturevalue(kind)
    run = train(data, settings_of(recipe, **{"training.precision": "bf16-mixed"}), tmp_path / "run")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {f"train_{term}" for term in TERMS[recipe]} <= set(rows[-1])
    assert all(float(rows[-1][f"train_{term}"]) >= 0 for term in TERMS[recipe])
    assert (run / "validation" / "evaluation.json").is_file()


@pytest.mark.parametrize("recipe", ["noisy-pixels:published", "rare-target", "few-labels"])
def test_recipe_resumes_where_it_was(recipe, pictures, tmp_path, monkeypatch):
    """Interrupted between two epochs: the image queue and the calibrated weight go on too."""
    whole = train(pictures, settings_of(recipe), tmp_path / "whole")
    part = interrupted_and_resumed(pictures, settings_of(recipe), tmp_path / "part", monkeypatch)
    first, second = (load_file(p / "checkpoints" / "last.safetensors") for p in (whole, part))
    assert first.keys() == second.keys()
    # Empty places of the image queue are NaN.
    assert all(torch.equal(first[k].nan_to_num(-1), second[k].nan_to_num(-1)) for k in first)


def test_contrast_takes_the_stages_near_strides_4_and_8(volumes, tmp_path):
    changes = {"plan.patch": [32, 32, 32], "network.stem": 2}
    run = train(volumes, settings_of("few-labels", **changes), tmp_path / "run")
    plan = read_plan(run / "plan.json")
    assert contrasted_stages(plan) == ["network.encoder.stages.1", "network.encoder.stages.2"]
    assert plan.network.feature_selection == ["decoder"]
    wrong = plan.model_copy(update={"network": plan.network.model_copy(update={"architecture": "segresnet"})})
    with pytest.raises(SettingsError, match="no encoder stages to contrast"):
        contrasted_stages(wrong)


def test_a_stage_that_is_not_there_is_a_settings_error(pictures, tmp_path):
    changes = {"network.feature_selection": ["decoder.9"]}
    with pytest.raises(SettingsError, match=r"decoder\.9"):
        train(pictures, settings_of("baseline", **changes), tmp_path / "run")


def test_the_frozen_extractor_is_no_part_of_what_is_trained(pictures, tmp_path):
    run = train(pictures, settings_of("rare-target"), tmp_path / "run")
    module = build_module(settings_of("rare-target"), read_plan(run / "plan.json"), [], 1)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("segmenter.") for name in trained)
    assert not any("extractor" in name for name in load_file(run / "model.safetensors"))


def test_a_network_starts_at_the_share_of_a_rare_class(pictures, tmp_path):
    plan = read_plan(train(pictures, settings_of("baseline"), tmp_path / "run") / "plan.json")

    def share_at_the_start(voxels, **changes):
        module = build_module(settings_of("baseline", **changes), plan, [SimpleNamespace(voxels=voxels)], 1)
        with torch.no_grad():
            logits = module.eval()(torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
        return float(logits.softmax(1)[:, 1].mean())

    rare, common = [9850, 150], [900, 100]
    assert share_at_the_start(rare) == pytest.approx(0.015, rel=0.5)
    assert share_at_the_start(common) > 0.2
    assert share_at_the_start(common, **{"network.prior_bias": True}) == pytest.approx(0.1, rel=0.5)
    assert share_at_the_start(rare, **{"network.prior_bias": False}) > 0.2


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_an_extractor_is_trained_on_the_own_images(kind, request, tmp_path, monkeypatch):
    from scotoma.training import extractor

    monkeypatch.setattr(extractor, "STEPS", 3)
    data = request.getfixturevalue(kind)
    changes = {"objective.content_extractor": "self", "objective.content_widths": [4, 8]}
    run = train(data, settings_of("rare-target", **changes), tmp_path / "run")
    made = load_file(run / "extractor.safetensors")
    fresh = random_extractor(1, 2 if kind == "pictures" else 3, seed=0, widths=[4, 8]).state_dict()
    assert made.keys() == fresh.keys()
    assert not any(torch.equal(made[name], fresh[name]) for name in made if name.endswith("weight"))
    again = train(data, settings_of("rare-target", **changes), tmp_path / "again")
    assert all(torch.equal(made[n], v) for n, v in load_file(again / "extractor.safetensors").items())
    assert not any("extractor" in name for name in load_file(run / "checkpoints" / "last.safetensors"))
    # The file serves other runs too, which then make none of their own.
    given = {**changes, "objective.content_weights": str(run / "extractor.safetensors")}
    other = train(data, settings_of("rare-target", **given), tmp_path / "other")
    assert not (other / "extractor.safetensors").exists()
    first, second = (load_file(r / "model.safetensors") for r in (run, other))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_unit_range():
    image = torch.randn(2, 3, 4, 5) * 9 - 4
    scaled = to_unit_range(image)
    assert scaled.amin((2, 3)).eq(0).all()
    torch.testing.assert_close(scaled.amax((2, 3)), torch.ones(2, 3))
    assert to_unit_range(torch.zeros(1, 1, 3, 3)).eq(0).all()
