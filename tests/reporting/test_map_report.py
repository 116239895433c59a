"""The page about anomaly maps: sound, true figures, pictures of what lies where it lies in the patient."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from report_samples import write_anomaly_run
from test_report_page import Page

from map_samples import (
    CANDIDATE_THRESHOLD,
    ODD_CASE,
    PICTURE,
    THRESHOLD,
    VOLUME,
    change_listing,
    write_maps,
)
from scotoma.data.image import read_mask, write_mask
from scotoma.data.labels import IGNORE, LabelMap
from scotoma.errors import InputError
from scotoma.evaluation.evaluate import evaluate
from scotoma.reporting.heat import HeatScale
from scotoma.reporting.map_charts import score_distribution, share_above
from scotoma.reporting.map_galleries import Gallery, heat_scale
from scotoma.reporting.map_sources import is_map_folder, read_map_folder
from scotoma.reporting.map_viewer import MapViewer
from scotoma.reporting.report import build_report, compare_report


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_anomaly_run(tmp_path_factory.mktemp("anomaly"))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> str:
    return build_report(run, tmp_path_factory.mktemp("out") / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def picture_page(tmp_path_factory) -> str:
    run = write_anomaly_run(tmp_path_factory.mktemp("pictures"), PICTURE)
    return build_report(run, tmp_path_factory.mktemp("out") / "report.html").read_text("utf-8")


@pytest.mark.parametrize("which", ["page", "picture_page"])
def test_sound_html_with_nothing_from_outside(which, request, run):
    text = request.getfixturevalue(which)
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    assert len(parsed.images) > 10
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in parsed.images)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    assert all(b <= a + 1 for a, b in zip(parsed.headings, parsed.headings[1:], strict=False))
    assert ODD_CASE not in text
    assert ODD_CASE in parsed.text
    for folder in (run.parents[1], Path.home()):
        assert str(folder) not in text


def test_figures_of_the_evaluation_stand_there(page, run):
    content = json.loads((run / "test" / "evaluation.json").read_text())
    words = Page(page).text
    pooled = content["pooled"]["no-labels"]
    for name in ("auroc", "auroc30", "auprc", "aupro", "aupro30", "best_dice", "dice"):
        assert f"{pooled[name]['value']:.2f}" in words
    for sentence in (
        "ahead of the baseline “intensity”",
        "minus intensity",
        "divided by 0.3: random scores give 0.15",
        "1 case without a lesion counts for the false positives",
        "Lesions found among the first candidates",
        "Detection against lesion load",
        "Scores of normal cases and patients",
        "None of the first 20 candidates of the case touches it",
        "98 % quantile of the normal cases",
        "Channel shown: FLAIR",
    ):
        assert sentence in words, sentence
    top = next(p for p in content["lesions"]["no-labels"]["top"] if p["n"] == 10)
    assert f"find {round(100 * top['sensitivity']['value'])} %" in words
    first = max(
        (x for c in content["cases"] for x in c["methods"]["no-labels"]["candidates"]),
        key=lambda x: x["evidence"],
    )
    place = ", ".join(f"{v:.0f}".replace("-", "−") for v in first["position"])
    assert f"at {place} mm (RAS)" in words


def test_normal_cases_training_and_settings(page):
    words = Page(page).text
    for sentence in (
        "Normal cases held out",
        "every candidate in them is a false alarm",
        "Validation loss",
        "Loss term cosine",
        "anomaly.patch",
        "Preparation of the images",
        "recipe no-labels",
    ):
        assert sentence in words, sentence
    assert words.index("Test cases") < words.index("Normal cases held out", words.index("Test cases"))


def test_pictures_are_placed_by_row_and_column(picture_page):
    words = Page(picture_page).text
    assert re.search(r"at row [\d.]+, column [\d.]+", words)
    assert "mm³" not in words


def test_maps_that_were_not_evaluated(tmp_path):
    maps, _ = write_maps(tmp_path, baselines=False)
    (tmp_path / "run").mkdir()
    words = Page(build_report(tmp_path / "run", evaluations=[maps]).read_text("utf-8")).text
    for sentence in (
        "truth is not known",
        "most convincing candidates are in",
        "Cases scored",
        "each counting alike",
    ):
        assert sentence in words, sentence
    assert "Lesions in the truth" not in words
    assert "AUROC" not in words


def test_an_evaluation_without_any_lesion(tmp_path):
    maps, truth = write_maps(tmp_path, lesions=0, baselines=False)
    evaluate(maps, truth, out=maps)
    (tmp_path / "run").mkdir()
    words = Page(build_report(tmp_path / "run", evaluations=[maps]).read_text("utf-8")).text
    assert "No case has a lesion in the truth" in words
    assert "4 cases without a lesion count for the false positives" in words
    assert "AUPRO30 and" not in words
    assert "Methods" not in words


def test_no_candidate_at_all(tmp_path):
    maps, truth = write_maps(tmp_path, baselines=False)
    change_listing(maps, candidate_threshold=99.0)
    evaluate(maps, truth, out=maps)
    (tmp_path / "run").mkdir()
    words = Page(build_report(tmp_path / "run", evaluations=[maps]).read_text("utf-8")).text
    assert re.search(r"No case has a candidate, so none of \d+ lesions is found", words)
    assert "of these candidates are true" not in words


@pytest.mark.parametrize(("highest", "warned"), [(20.0, True), (2.5, False)])
def test_normal_cases_that_were_held_out_and_look_unlike_the_others(tmp_path, highest, warned):
    maps, truth = write_maps(tmp_path, baselines=False)
    change_listing(
        maps, controls={"quantiles": [0, 0.5, 0.99, 1], "scores": [0, 0.3, 0.8 * highest, highest]}
    )
    evaluate(maps, truth, out=maps)
    (tmp_path / "run").mkdir()
    words = Page(build_report(tmp_path / "run", evaluations=[maps]).read_text("utf-8")).text
    assert ("Take scores for a ranking" in words) is warned


def test_an_evaluation_elsewhere_finds_its_maps(tmp_path):
    maps, truth = write_maps(tmp_path, baselines=False)
    evaluate(maps, truth, out=tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    parsed = Page(build_report(tmp_path / "run", evaluations=[tmp_path / "elsewhere"]).read_text("utf-8"))
    assert parsed.images
    shutil.rmtree(maps)
    parsed = Page(build_report(tmp_path / "run", evaluations=[tmp_path / "elsewhere"]).read_text("utf-8"))
    assert not parsed.images
    assert "region is no longer where it was" in parsed.text
    assert "AUPRO30" in parsed.text


def test_failed_cases_and_no_case_at_all(tmp_path):
    maps, truth = write_maps(tmp_path, baselines=False)
    (maps / "maps" / "p0.nii.gz").unlink()
    evaluate(maps, truth, out=maps)
    (tmp_path / "run").mkdir()
    words = Page(build_report(tmp_path / "run", evaluations=[maps]).read_text("utf-8")).text
    assert "p0 p0.nii.gz: the anomaly map is missing" in words
    shutil.rmtree(maps / "maps")
    evaluate(maps, truth, out=maps)
    words = Page(build_report(tmp_path / "run", evaluations=[maps]).read_text("utf-8")).text
    assert "No case was scored" in words


def test_a_case_whose_map_is_gone_is_said_to_be(tmp_path):
    maps, _ = write_maps(tmp_path, baselines=False)
    (maps / "maps" / "p1.nii.gz").unlink()
    (tmp_path / "run").mkdir()
    words = Page(build_report(tmp_path / "run", evaluations=[maps]).read_text("utf-8")).text
    assert "p1 is not shown: its anomaly map is no longer where it was" in words


def test_candidates_lie_where_the_table_says(tmp_path):
    """Position in mm of the table -> voxel of the view, through the image's own affine."""
    maps, truth = write_maps(tmp_path, baselines=False)
    evaluate(maps, truth, out=maps)
    folder = read_map_folder(maps, None, "x")
    viewer = MapViewer(folder)
    case = folder.case("p1")
    loaded = viewer.load("p1")
    assert loaded is not None
    image = nib.load(case.images[0])
    canonical = nib.as_closest_canonical(image)
    assert loaded.case.scores.shape == canonical.shape
    assert len(loaded.boxes) == len(case.candidates)
    for candidate, box in zip(case.candidates, loaded.boxes, strict=True):
        voxel = np.linalg.inv(canonical.affine) @ [*candidate["position"], 1]
        turned = loaded.case.turned_box(box)
        assert all(a - 0.51 <= v <= b - 0.49 for v, (a, b) in zip(voxel, turned, strict=False))
        inside = loaded.case.scores[tuple(slice(a, b) for a, b in turned)]
        assert np.nanmax(inside) >= candidate["peak"] - 1e-4
    first = loaded.slice_of_first()
    assert np.nanmax(loaded.case.scores[:, :, first]) >= case.candidates[0]["peak"] - 1e-4
    assert np.isnan(loaded.case.scores[0, 0, 0])


def test_candidates_keep_their_rank_where_voxels_are_ignored(tmp_path):
    maps, truth = write_maps(tmp_path, cases=2, baselines=False)
    mask = read_mask(truth / "p0.nii.gz")
    mask.array[: VOLUME.shape[0] // 2] = 9
    write_mask(truth / "p0.nii.gz", mask.array, mask)
    label_map = LabelMap(classes=["background", "lesion"], values={0: 0, 1: 1, 9: "ignore"})
    evaluate(maps, truth, label_map, out=maps)
    folder = read_map_folder(maps, None, "x")
    loaded = MapViewer(folder).load("p0")
    assert loaded is not None
    assert loaded.boxes == [x["box"] for x in folder.case("p0").candidates]
    assert (loaded.case.truth == IGNORE).any()


def test_no_case_fills_the_page(tmp_path):
    maps, _ = write_maps(tmp_path, cases=3, lesions=9, baselines=False)
    gallery = Gallery.draw(read_map_folder(maps, None, "x"))
    shown = [case.case for case, _ in gallery.spots]
    assert max(shown.count(case) for case in set(shown)) <= 3
    evidence = [x["evidence"] for _, x in gallery.spots]
    assert evidence == sorted(evidence, reverse=True)


def test_heat_leaves_what_is_normal_as_it_was():
    scale = HeatScale(1.0, 2.0, 4.0)
    image = np.full((1, 4), 100, np.uint8)
    out = scale.over(image, np.array([[0.5, np.nan, 2.0, 9.0]], np.float32))
    assert (out[0, :2] == 100).all()
    assert out[0, 2, 0] != out[0, 2, 1]
    assert out[0, 3].sum() > out[0, 2].sum(), "the strongest is the lightest"
    assert scale.threshold_share == pytest.approx(1 / 3)
    colour = scale.over(np.dstack([image, image // 2, image]), np.zeros((1, 4), np.float32))
    assert (np.ptp(colour, axis=2) == 0).all(), "colour is made grey below the map"


def test_scale_of_the_heat_follows_the_normal_cases(tmp_path):
    maps, _ = write_maps(tmp_path, baselines=False)
    folder = read_map_folder(maps, None, "x")
    scale = heat_scale(folder)
    assert scale.low < THRESHOLD == scale.threshold < scale.high
    table = folder.listing["controls"]
    assert scale.low == pytest.approx(np.interp(0.9, table["quantiles"], table["scores"]))
    change_listing(maps, controls=None)
    scale = heat_scale(read_map_folder(maps, None, "x"))
    assert scale.low < THRESHOLD < scale.high
    assert folder.candidate_threshold == CANDIDATE_THRESHOLD


def test_score_distribution_states_the_share_above_the_threshold():
    figure = score_distribution({"a": ([0, 1, 2, 3], [1, 0.5, 0.1, 0.001])}, 2.0, "")
    assert figure is not None
    assert figure.rows == (("a", "10.0 %"),)
    assert share_above({"quantiles": [0, 0.98, 1], "scores": [0, 2, 4]}, 2) == pytest.approx(0.02)
    assert share_above(None, 2) is None
    assert score_distribution({}, 2.0, "") is None


def test_what_cannot_be_read(tmp_path):
    maps, _ = write_maps(tmp_path, baselines=False)
    assert is_map_folder(maps)
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="holds anomaly maps"):
        compare_report({"a": (tmp_path / "run", maps), "b": (tmp_path / "run", maps)}, tmp_path / "c.html")
    (maps / "candidates" / "p0.csv").write_text("rank,x\n1,2\n")
    with pytest.raises(InputError, match=r"p0.csv: not a table of candidates"):
        build_report(tmp_path / "run", evaluations=[maps])
    change_listing(maps, threshold=None)
    with pytest.raises(InputError, match="not a list of predictions"):
        build_report(tmp_path / "run", evaluations=[maps])
