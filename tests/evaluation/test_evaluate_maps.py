"""Folders of anomaly maps against folders of masks: figures, edge cases, failures, the written files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from map_samples import PICTURE, THRESHOLD, VOLUME, change_listing, write_maps
from scotoma.data.grid import Grid
from scotoma.data.image import Image, read_image, read_mask, write_image, write_mask
from scotoma.data.labels import LabelMap
from scotoma.errors import InputError
from scotoma.evaluation import anomaly_metrics
from scotoma.evaluation.compare import compare
from scotoma.evaluation.evaluate import Evaluation, evaluate
from scotoma.evaluation.map_candidates import rank_by_evidence
from scotoma.evaluation.map_figures import JudgedVoxels, exact_counts, figures_of, grid_thresholds
from scotoma.evaluation.matching import components
from scotoma.evaluation.statistics import Bootstrap


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_maps(tmp_path)


@pytest.fixture
def alone(tmp_path: Path) -> tuple[Path, Path]:
    """Without baselines."""
    return write_maps(tmp_path, baselines=False)


def arrays(predictions: Path, truth: Path, method: str = "no-labels") -> tuple[list, list, list]:
    """Scores, masks and judged voxels of all cases, read anew."""
    listing = json.loads((predictions / "prediction.json").read_text())["cases"]
    scores, masks, valid = [], [], []
    for _, entry in sorted(listing.items()):
        file = entry["map"] if method == "no-labels" else entry["baselines"][method]
        scores.append(read_image(predictions / file).array[0])
        masks.append(read_mask(truth / entry["prediction"]).array)
        valid.append(read_mask(predictions / entry["region"]).array > 0)
    return scores, masks, valid


@pytest.mark.parametrize("grid", [VOLUME, PICTURE], ids=["volumes", "pictures"])
def test_figures_of_the_whole_folder(grid: Grid, tmp_path: Path) -> None:
    folders = write_maps(tmp_path, grid)
    found = evaluate(*folders, out=tmp_path / "out").content
    assert found["methods"] == ["no-labels", "intensity", "random"]
    assert found["counts"]["evaluated"] == 4
    assert found["counts"]["without_lesion"] == 1
    for method in found["methods"]:
        scores, masks, valid = arrays(*folders, method)
        expected = anomaly_metrics(scores, masks, found["thresholds"][method], valid)
        for name, figure in found["pooled"][method].items():
            assert figure["value"] == pytest.approx(expected[name], abs=1e-9), name
            assert figure["low"] <= figure["value"] + 1e-9
            assert figure["high"] >= figure["value"] - 1e-9
        for n, case in enumerate(found["cases"][:3]):
            alone = anomaly_metrics(scores[n], masks[n], found["thresholds"][method], valid[n])
            for name in found["pooled"][method]:
                assert case["methods"][method][name] == pytest.approx(alone[name], abs=1e-9)
        means = [c["methods"][method]["aupro30"] for c in found["cases"] if c["n_lesions"]]
        assert found["summary"][method]["aupro30"]["mean"] == pytest.approx(np.mean(means))
        assert found["summary"][method]["aupro30"]["n_undefined"] == 1
    metrics = pytest.importorskip("sklearn.metrics")
    scores, masks, valid = arrays(*folders)
    flat = [np.concatenate([a[v] for a, v in zip(side, valid, strict=True)]) for side in (masks, scores)]
    pooled = found["pooled"]["no-labels"]
    assert pooled["auroc"]["value"] == pytest.approx(metrics.roc_auc_score(*flat), abs=1e-9)
    assert pooled["auprc"]["value"] == pytest.approx(metrics.average_precision_score(*flat), abs=1e-9)
    assert pooled["dice"]["value"] == pytest.approx(metrics.f1_score(flat[0], flat[1] >= THRESHOLD), abs=1e-9)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"evaluation.json", "cases.csv", "lesions.csv"}
    text = (tmp_path / "out" / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == found
    assert Evaluation.load(tmp_path / "out").content == found
    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    assert [r["method"] for r in rows[:3]] == found["methods"]
    assert rows[-1]["auroc"] == ""
    assert len(rows) == 12
    lesions = list(csv.DictReader((tmp_path / "out" / "lesions.csv").open()))
    assert len(lesions) == 3 * sum(c["n_lesions"] for c in found["cases"])
    tables = Evaluation(found).tables()
    assert len(tables) == 5
    assert all(len(row) == len(header) for _, header, rows in tables for row in rows)


def test_differences_are_paired(folders: tuple[Path, Path]) -> None:
    found = evaluate(*folders).content
    for kind, source, key in (("pooled", "pooled", "value"), ("mean", "summary", "mean")):
        for name, difference in found["differences"]["intensity"][kind].items():
            one, other = (found[source][m][name][key] for m in ("no-labels", "intensity"))
            assert difference["value"] == pytest.approx(one - other), name
    random = found["differences"]["random"]["pooled"]["auroc"]
    assert 0 < random["low"] < random["value"] < random["high"]


def test_the_grid_of_resamples_is_fine_enough(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    regions = np.zeros((60, 60, 20), int)
    for n in range(12):
        a, b = rng.integers(0, 50, 2)
        regions[a : a + 1 + n % 7, b : b + 5, 5:8] = n + 1
    regions = np.unique(regions, return_inverse=True)[1].reshape(regions.shape)
    scores = (rng.normal(size=regions.shape) + 1.5 * (regions > 0)).astype(np.float32)
    voxels = JudgedVoxels.of(scores, regions, np.ones(regions.shape, bool))
    file = tmp_path / "a.npz"
    voxels.save(file)
    exact, coarse = figures_of(exact_counts([file])), figures_of(voxels.counts(grid_thresholds([file])))
    for name, value in exact.items():
        assert coarse[name] == pytest.approx(value, abs=5e-3), name


def test_candidates_are_ranked_as_in_the_table_beside_the_map(alone: tuple[Path, Path]) -> None:
    found = evaluate(*alone).content
    for case in found["cases"]:
        rows = list(csv.DictReader((alone[0] / "candidates" / f"{case['case']}.csv").open()))
        mine = case["methods"]["no-labels"]["candidates"]
        assert len(rows) == len(mine) == case["methods"]["no-labels"]["n_candidates"]
        for row, candidate in zip(rows, mine, strict=True):
            assert int(row["rank"]) == candidate["rank"]
            assert [float(row[a]) for a in "xyz"] == pytest.approx(candidate["position"], rel=2e-3, abs=0.02)
            for name in ("volume", "peak", "mean", "evidence"):
                assert float(row[name]) == pytest.approx(candidate[name], rel=2e-3)


def test_lesions_among_the_first_candidates() -> None:
    scores = np.zeros((20, 20))
    scores[2:4, 2:4], scores[10:12, 10:12], scores[16, 16] = 9, 5, 4
    ranked = rank_by_evidence(scores > 2, scores, 2.0)
    assert ranked.labels[2, 2] == 1
    assert ranked.labels[16, 16] == 3
    assert ranked.evidence.tolist() == [14, 6, 2]
    assert rank_by_evidence(scores > 2, scores, 2.0, min_voxels=2).labels.max() == 2
    clipped = np.minimum(scores, 4)
    assert rank_by_evidence(clipped >= 4, clipped, 4.0).labels[16, 16] == 3, "of equal ones the largest first"


def test_top_n_and_froc_by_hand(tmp_path: Path) -> None:
    folders = write_maps(tmp_path, cases=5, seed=3, baselines=False)
    found = evaluate(*folders).content
    lesions = found["lesions"]["no-labels"]
    rows = [c["methods"]["no-labels"] for c in found["cases"]]
    ranks = [x["rank"] for row in rows for x in row["lesions"]]
    for part in lesions["top"]:
        hit = sum(r is not None and r <= part["n"] for r in ranks)
        assert part["sensitivity"]["value"] == pytest.approx(hit / len(ranks))
        first = [c["true"] for row in rows for c in row["candidates"] if c["rank"] <= part["n"]]
        assert part["precision"]["value"] == pytest.approx(np.mean(first))
        assert part["false_positives_per_case"] == pytest.approx((len(first) - sum(first)) / 5)
    froc = lesions["froc"]
    assert froc["sensitivity"][0] == pytest.approx(lesions["sensitivity"]["value"])
    assert froc["false_positives_per_case"][0] == pytest.approx(
        sum(not c["true"] for r in rows for c in r["candidates"]) / 5
    )
    for threshold, sensitivity in zip(froc["threshold"], froc["sensitivity"], strict=True):
        reached = {
            (n, x)
            for n, row in enumerate(rows)
            for c in row["candidates"]
            if c["evidence"] >= threshold
            for x in c["lesions"]
        }
        assert sensitivity == pytest.approx(len(reached) / len(ranks))
    assert 0 < lesions["average_precision"]["value"] <= lesions["sensitivity"]["value"]
    sizes = lesions["by_size"]
    assert sum(b["n"] for b in sizes) == len(ranks)
    assert sum(b["detected"] for b in sizes) == sum(r is not None and r <= 20 for r in ranks)
    assert sum(b["n"] for b in found["by_load"]) == 4


def test_processes_change_nothing(alone: tuple[Path, Path]) -> None:
    label_map = LabelMap.plain(["background", "lesion"])
    one, two = (evaluate(*alone, label_map, workers=n).content for n in (1, 2))
    one.pop("created"), two.pop("created")
    assert one == two


def test_no_case_has_a_lesion(tmp_path: Path) -> None:
    found = evaluate(*write_maps(tmp_path, cases=3, lesions=0, baselines=False))
    content = found.content
    assert content["counts"]["without_lesion"] == 3
    figures = content["pooled"]["no-labels"]
    assert figures["prevalence"]["value"] == 0
    assert all(figures[k]["value"] is None for k in ("auroc", "auprc", "aupro", "best_dice", "dice"))
    assert content["cases"][0]["methods"]["no-labels"]["false_positive_rate"] > 0
    assert content["lesions"]["no-labels"]["sensitivity"]["value"] is None
    assert content["lesions"]["no-labels"]["froc"] is None
    ((title, header, rows),) = found.tables()
    assert "only false positives" in title
    rates = [c["methods"]["no-labels"]["false_positive_rate"] for c in content["cases"]]
    assert float(rows[0][1]) == pytest.approx(np.mean(rates), abs=1e-4)
    assert len(rows[0]) == len(header)


def test_no_candidate_at_all(folders: tuple[Path, Path], tmp_path: Path) -> None:
    change_listing(folders[0], threshold=99.0, candidate_threshold=None, thresholds={})
    found = evaluate(*folders)
    lesions = found.content["lesions"]
    assert lesions["no-labels"]["sensitivity"]["value"] == 0
    assert lesions["no-labels"]["n_candidates"] == 0
    assert lesions["intensity"] is None
    assert found.content["pooled"]["no-labels"]["dice"]["value"] == 0
    assert found.content["pooled"]["intensity"]["dice"]["value"] is None
    assert "dice" not in found.content["differences"]["intensity"]["pooled"]
    assert found.tables()


def test_truth_outside_the_region_is_said_and_counted_nowhere(alone: tuple[Path, Path]) -> None:
    before = evaluate(*alone).content
    file = alone[1] / "p0.nii.gz"
    mask = read_mask(file)
    changed = mask.array.copy()
    changed[:2, :2, :2] = 1
    write_mask(file, changed, mask)
    after = evaluate(*alone).content
    assert after["pooled"] == before["pooled"]
    assert after["lesions"] == before["lesions"]
    assert after["cases"][0]["n_lesions_outside"] == 1
    assert after["cases"][0]["lesion_voxels_outside"] == 8
    assert "lesions of 1 case reach beyond the region that was scored, by 8 voxels" in after["notes"][0]
    assert "1 lesion wholly" in after["notes"][0]


def test_excluded_voxels_are_judged_at_the_minimum(alone: tuple[Path, Path]) -> None:
    """A lesion in what a method excludes on purpose is a miss, whatever the map holds there."""
    file = alone[0] / "maps" / "p0.nii.gz"
    image = read_image(file)
    excluded = read_mask(alone[0] / "regions" / "p0.nii.gz").array == 2
    assert excluded.any()
    before = evaluate(*alone).content["cases"][0]
    assert before["excluded_voxels"] == excluded.sum()
    image.array[0][excluded] = 50
    write_image(file, image.array, image)
    after = evaluate(*alone).content["cases"][0]
    assert after["methods"]["no-labels"]["auroc"] == before["methods"]["no-labels"]["auroc"]


@pytest.mark.parametrize("damage", ["missing", "grid", "nan", "text", "region", "empty region", "mask"])
def test_a_bad_case_does_not_cost_the_others(damage: str, alone: tuple[Path, Path]) -> None:
    predictions = alone[0]
    file, word = predictions / "maps" / "p0.nii.gz", "map is missing"
    region = predictions / "regions" / "p0.nii.gz"
    if damage == "missing":
        file.unlink()
    elif damage == "grid":
        like = Image(np.zeros((1, 9, 9, 9), np.float32), Grid.of_spacing((9, 9, 9), (1, 1, 1)))
        write_image(file, like.array, like)
        word = "not on the grid of the case's mask (shape"
    elif damage == "nan":
        image = read_image(file)
        image.array[0, 14, 16, 5] = np.nan
        write_image(file, image.array, image)
        word = "NaN or infinite"
    elif damage == "text":
        file.write_text("no image")
        word = "cannot be read"
    elif damage == "region":
        region.unlink()
        word = "region that was scored is missing"
    elif damage == "empty region":
        mask = read_mask(region)
        write_mask(region, 0 * mask.array, mask)
        word = "no voxel was scored"
    else:
        (predictions / "p0.nii.gz").unlink()
        word = "no prediction for p0"
    found = evaluate(*alone).content
    assert list(found["failed"]) == ["p0"]
    assert word in found["failed"]["p0"]
    assert found["failed"]["p0"].count(". ") == 0
    assert found["counts"]["evaluated"] == 3


def test_all_failed(alone: tuple[Path, Path], tmp_path: Path) -> None:
    for file in (alone[0] / "maps").iterdir():
        file.unlink()
    found = evaluate(*alone, out=tmp_path / "out")
    assert found.content["counts"]["failed"] == 4
    assert found.content["counts"]["without_lesion"] == 0
    assert found.tables()[0][2] == []
    assert (tmp_path / "out" / "cases.csv").is_file()


def test_a_baseline_that_some_cases_lack_is_left_out(folders: tuple[Path, Path]) -> None:
    listing = json.loads((folders[0] / "prediction.json").read_text())["cases"]
    del listing["p0"]["baselines"]["random"]
    change_listing(folders[0], cases=listing)
    found = evaluate(*folders).content
    assert found["methods"] == ["no-labels", "intensity"]
    assert any("random: a map for 3 of 4 cases only" in note for note in found["notes"])


def test_values_of_the_truth(alone: tuple[Path, Path]) -> None:
    before = evaluate(*alone).content["pooled"]
    for file in alone[1].iterdir():
        mask = read_mask(file)
        write_mask(file, 255 * mask.array, mask)
    assert evaluate(*alone).content["pooled"] == before
    for n, file in enumerate(sorted(alone[1].iterdir())):
        mask = read_mask(file)
        changed = (mask.array > 0).astype(np.uint8)
        changed[np.nonzero(changed)[0][:1]] *= 1 + (n < 2)
        write_mask(file, changed, mask)
    found = evaluate(*alone).content
    assert found["pooled"] == before
    assert any("all count as lesion" in note for note in found["notes"])
    ignored = LabelMap(classes=["background", "lesion"], values={0: 0, 1: 1, 2: "ignore"})
    given = evaluate(*alone, label_map=ignored).content
    assert given["cases"][0]["ignored_voxels"] > 0


def test_one_patient_has_no_interval(tmp_path: Path) -> None:
    folders = write_maps(tmp_path, cases=2, baselines=False)
    listing = json.loads((folders[0] / "prediction.json").read_text())["cases"]
    for entry in listing.values():
        entry["patient"] = "one"
    change_listing(folders[0], cases=listing)
    figure = evaluate(*folders).content["pooled"]["no-labels"]["auroc"]
    assert figure["value"] > 0.5
    assert figure["low"] is None


def test_errors(alone: tuple[Path, Path]) -> None:
    found = evaluate(*alone)
    with pytest.raises(InputError, match="comparison with their baselines"):
        compare(found, found)
    change_listing(alone[0], threshold=None)
    with pytest.raises(InputError, match="not a list of predictions"):
        evaluate(*alone)


def test_the_command_prints_and_writes(folders: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    from typer.testing import CliRunner

    from scotoma.cli import app

    done = CliRunner().invoke(app, ["evaluate", *map(str, folders), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["kind"] == "anomaly"
    done = CliRunner().invoke(app, ["evaluate", *map(str, folders)])
    assert "AUPRO30" in done.stdout
    assert "no-labels minus baseline" in done.stdout


def test_resamples_are_those_of_all_voxels_of_the_patients_drawn(tmp_path: Path) -> None:
    """Every case counted as often as it was drawn, and all voxels sorted anew."""
    rng = np.random.default_rng(1)
    files, cases = [], []
    for n in range(5):
        regions, _ = components(ndimage.gaussian_filter(rng.random((40, 40)), 2) > 0.53)
        scores = (rng.normal(size=regions.shape) + 1.5 * (regions > 0)).astype(np.float32)
        files.append(tmp_path / f"{n}.npz")
        JudgedVoxels.of(scores, regions, np.ones(regions.shape, bool)).save(files[-1])
        cases.append((scores, regions))
    grid = grid_thresholds(files)
    counts = np.stack([JudgedVoxels.load(file).counts(grid) for file in files])
    bootstrap = Bootstrap([str(n) for n in range(5)], seed=0, resamples=20)
    drawn = bootstrap.sums(counts)
    offset = {k: v - figures_of(counts.sum(0))[k] for k, v in figures_of(exact_counts(files)).items()}
    found = figures_of(np.moveaxis(drawn, 1, 0))
    for row, times in enumerate(bootstrap.sums(np.eye(5)).round().astype(int)):
        chosen = [cases[n] for n in range(5) for _ in range(times[n])]
        expected = anomaly_metrics([s for s, _ in chosen], [r for _, r in chosen])
        for name, values in found.items():
            assert values[row] + offset[name] == pytest.approx(expected[name], abs=3e-3), name
