"""Settings: where they come from, and what a wrong one is answered with."""

from __future__ import annotations

import pytest
import yaml

from scotoma.config import load_settings, read_settings, recipe_names
from scotoma.errors import SettingsError


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name):
    settings = load_settings(name)
    assert settings.recipe == name


def test_later_sources_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("training: {steps: 10, learning_rate: 1.0e-3}\nobjective: {dice: 0.5}\n")
    settings = load_settings("baseline", file, ["training.steps=7", "objective.ce=2.0"])
    assert settings.training.steps == 7
    assert settings.training.learning_rate == pytest.approx(1e-3)
    assert settings.objective == {"voxel": "ce", "dice": 0.5, "ce": 2.0}


def test_a_recipe_may_be_a_file(tmp_path):
    file = tmp_path / "ours.yaml"
    file.write_text("objective: {voxel: ce}\n")
    assert load_settings(str(file)).recipe == "ours"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("trainig.steps=3", "did you mean 'training'"),
        ("training.step=3", "did you mean 'training.steps'"),
        ("training.steps=many", "training.steps = 'many'"),
        ("training.steps=0", "greater than or equal to 1"),
        (
            "network.features=3",
            r"features = 3: .*greater than or equal to 4, or input should be a valid list",
        ),
        ("network.features=[2,4]", r"features = \[2, 4\]: .*greater than or equal to 4"),
        ("training.steps", "section.name=value"),
        ("seed.x=3", "'seed' is a value"),
        ("plan.kind=4d", "plan.kind"),
    ],
)
def test_a_wrong_setting_is_named(override, part):
    if override == "seed.x=3":
        with pytest.raises(SettingsError, match=part):
            load_settings("baseline", overrides=["seed=1", override])
        return
    with pytest.raises(SettingsError, match=part):
        load_settings("baseline", overrides=[override])


def test_a_variant_overlays_its_recipe():
    ours, published = (
        load_settings("missing-lesions"),
        load_settings("missing-lesions", overrides=["variant=published"]),
    )
    assert ours.network.prior_bias is None
    assert published.network.prior_bias is False
    assert ours.objective["expected_miss_rate"] == "measured"
    assert published.objective["beta_ramp"] is published.objective["expected_miss_rate"] is None
    assert (published.objective["alpha"], published.objective["beta"]) == (3.0, 0.1)
    with pytest.raises(SettingsError, match="no variant 'publishd'; there are: teacher, published"):
        load_settings("missing-lesions", overrides=["variant=publishd"])
    with pytest.raises(SettingsError, match="it has none"):
        load_settings("baseline", overrides=["variant=published"])


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'baseline'"):
        load_settings("basline")


def test_numbers_are_accepted_as_yaml_writes_them():
    settings = load_settings(overrides=["training.precision=32", "training.learning_rate=1e-4"])
    assert settings.training.precision == "32"
    assert settings.training.learning_rate == pytest.approx(1e-4)


def test_saved_settings_come_back(tmp_path):
    settings = load_settings(overrides=["data.label_map={0: 0, 255: 1, 7: ignore}", "split.fold=all"])
    settings.save(tmp_path / "config.yaml")
    assert read_settings(tmp_path / "config.yaml") == settings


def test_yaml_cannot_build_objects(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text(yaml.dump({"recipe": "baseline"}) + "seed: !!python/object/apply:os.getpid []\n")
    with pytest.raises(SettingsError, match="not valid YAML"):
        load_settings(file=file)
