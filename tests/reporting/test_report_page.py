"""The page as a whole: sound HTML, nothing from outside, nothing of this machine, true figures."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_samples import ODD_CASE, write_run

from scotoma.data.labels import LabelMap
from scotoma.errors import InputError
from scotoma.evaluation.folds import merge_folds
from scotoma.losses import objective
from scotoma.reporting import findings
from scotoma.reporting.report import build_report, compare_report
from scotoma.reporting.wording import decimals

VOID = {"meta", "img", "input", "br", "link", "hr"}
DRAWN = {"path", "line", "polyline", "polygon", "circle", "rect"}


class Page(HTMLParser):
    """Parses strictly: every tag closed in order, ids unique."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict] = []
        self.tags: list[str] = []
        self.headings: list[int] = []
        self._open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        if tag == "img":
            self.images.append(values)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in DRAWN | VOID

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> str:
    return build_report(run, tmp_path_factory.mktemp("out") / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def comparison(run, better_run, tmp_path_factory) -> str:
    runs = {"baseline": (run, run / "validation"), "careful <i>": (better_run, better_run / "validation")}
    out = tmp_path_factory.mktemp("out") / "compare.html"
    return compare_report(runs, out, title="What was forgotten", introduction="Half was hidden.").read_text(
        "utf-8"
    )


@pytest.mark.parametrize("which", ["page", "comparison"])
def test_sound_html_with_nothing_from_outside(which, request):
    text = request.getfixturevalue(which)
    parsed = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    assert parsed.images
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in parsed.images)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    assert "link" not in parsed.tags
    assert "default-src 'none'" in text
    assert parsed.headings[0] == 1
    assert all(b <= a + 1 for a, b in zip(parsed.headings, parsed.headings[1:], strict=False))


def test_case_ids_and_run_names_are_escaped(page, comparison):
    assert ODD_CASE not in page
    assert "<i>" not in comparison
    assert ODD_CASE in Page(page).text
    assert "careful <i>" in Page(comparison).text


@pytest.mark.parametrize("which", ["page", "comparison"])
def test_no_folder_of_this_machine(which, request, run, volumes):
    text = request.getfixturevalue(which)
    for folder in (run.parent, volumes[0].parent, Path.home()):
        assert str(folder) not in text
    assert "my cache" in text or which == "comparison"  # the last part of a path stays


def test_headline_repeats_the_evaluation(run, page):
    content = json.loads((run / "validation/evaluation.json").read_text())
    lesions, dice = content["lesions"]["lesion"], content["summary"]["lesion"]["dice"]
    words = Page(page).text
    assert f"It finds {lesions['n_detected']} of {lesions['n_lesions']} lesions" in words
    assert f"{dice['mean']:.2f}" in words
    assert f"mean of {dice['n']} cases" in words
    for case in content["cases"]:
        assert case["case"] in words
    missed = lesions["n_lesions"] - lesions["n_detected"]
    assert missed > 1
    assert f"{missed} missed lesions" in words


def test_what_went_wrong_is_said(page):
    words = Page(page).text
    assert "1 case could not be evaluated and is in no figure" in words
    assert "p9.nii.gz: cannot be read as an image" in words
    assert "Of 1 case without any lesion" in words
    assert "also chose the weights" in words


def test_every_loss_term_has_a_curve(page):
    words = Page(page).text
    for title in ("Validation Dice", "Loss term ce", "Loss term dice", "Learning rate"):
        assert title in words


def test_the_channel_in_which_lesions_stand_out_is_shown(page):
    assert "Channel shown: FLAIR" in Page(page).text


def test_pictures_in_colour(picture_run):
    parsed = Page(build_report(picture_run).read_text("utf-8"))
    assert "Test cases" in parsed.text
    assert "Radiological" not in parsed.text
    assert " px, area " in parsed.text
    assert (picture_run / "report.html").is_file()


def test_several_classes_without_probabilities(class_run):
    parsed = Page(build_report(class_run).read_text("utf-8"))
    assert "One row per class" in parsed.text
    assert "Dice, core" in parsed.text
    assert "predict with --probabilities" in parsed.text
    assert "FROC)" not in parsed.text


def test_a_run_without_anything_says_what_is_missing(tmp_path):
    (tmp_path / "young").mkdir()
    (tmp_path / "young/plan.json").write_text("{}")
    words = Page(build_report(tmp_path / "young").read_text("utf-8")).text
    for sentence in (
        "no evaluation in the run folder",
        "no metrics.csv",
        "no fingerprint.json",
        "neither config.yaml",
    ):
        assert sentence in words


def test_alarms_and_doubted_labels_are_warned_about(better_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(better_run, copy)
    (copy / "alarms.json").write_text(json.dumps(["epoch 3: every patch has been called background."]))
    words = Page(build_report(copy).read_text("utf-8")).text
    assert "Collapse: epoch 3" in words
    assert "from which lesions may be missing" in words
    assert "Their labels are doubted" in words


@pytest.mark.parametrize(
    ("rate", "said"),
    [("0.312", "At least 31 % of the lesions are missing"), ("0.02", "no evidence that lesions are missing")],
)
def test_what_a_run_measured_about_its_masks_is_told(better_run, tmp_path, rate, said):
    copy = tmp_path / "run"
    shutil.copytree(better_run, copy)
    header, *rows = (copy / "metrics.csv").read_text().splitlines()
    lines = [f"{header},train_miss_rate", *(f"{row}," for row in rows[:-1]), f"{rows[-1]},{rate}"]
    (copy / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert said in Page(build_report(copy).read_text("utf-8")).text
    assert findings.DOUBT == objective.DOUBT


@pytest.mark.parametrize(("rate", "kept"), [("0.312", False), ("0.02", True)])
def test_a_trusted_validation_is_said_to_have_chosen_the_weights(better_run, tmp_path, rate, kept):
    copy = tmp_path / "run"
    shutil.copytree(better_run, copy)
    config = (copy / "config.yaml").read_text()
    assert "select: best" in config
    (copy / "config.yaml").write_text(config.replace("select: best", "select: trusted"))
    header, *rows = (copy / "metrics.csv").read_text().splitlines()
    rows = [f"{header},train_miss_rate", *(f"{row},{rate}" for row in rows)]
    (copy / "metrics.csv").write_text("\n".join(rows) + "\n")
    words = Page(build_report(copy).read_text("utf-8")).text
    assert ("which also chose the weights" in words) == kept
    assert ("The weights of the epoch marked were kept" in words) == kept
    assert "that favours a model that omits them" not in words


def test_a_moved_run_still_shows_its_predictions(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    file = moved / "validation/evaluation.json"
    content = file.read_text().replace(str(run), "/gone")
    assert "/gone" in content
    file.write_text(content)
    parsed = Page(build_report(moved).read_text("utf-8"))
    assert parsed.images


def test_images_that_are_gone_are_said_to_be(run, volumes, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "validation/evaluation.json"
    file.write_text(file.read_text().replace(str(volumes[0].parent / "images"), "/gone"))
    parsed = Page(build_report(copy).read_text("utf-8"))
    assert not parsed.images
    assert "no longer where it was predicted from" in parsed.text


def test_a_hundred_cases_stay_small(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "validation/evaluation.json"
    content = json.loads(file.read_text())
    cases = [case | {"case": f"{case['case']} {n}"} for n in range(20) for case in content["cases"]]
    content["cases"], content["worst_to_best"] = cases, [c["case"] for c in cases]
    file.write_text(json.dumps(content))
    out = build_report(copy)
    assert out.stat().st_size < 2e6
    assert f"{len(cases)} cases" in Page(out.read_text("utf-8")).text


def test_further_evaluations_come_first_and_folds_are_named(run, picture_run, tmp_path):
    text = build_report(run, tmp_path / "r.html", evaluations=[picture_run / "test"]).read_text("utf-8")
    assert text.index("Test cases") < text.index("Validation cases")
    for n in range(2):
        shutil.copytree(run, tmp_path / f"all/fold_{n}")
    words = Page(build_report(tmp_path / "all").read_text("utf-8")).text
    assert "fold 0 validation" in words
    assert "fold 1" in words


def test_a_folder_that_is_no_run_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/image.png").write_bytes(b"")
    with pytest.raises(InputError, match="no run there; name the folder given to `train -o`"):
        build_report(tmp_path / "empty")
    with pytest.raises(InputError, match=r"holds an evaluation, not a run.*--evaluation"):
        build_report(run / "validation")
    assert not list(tmp_path.rglob("*.html"))
    assert not list((run / "validation").glob("*.html"))
    build_report(tmp_path / "empty", evaluations=[run / "validation"])


def test_all_folds_together_come_before_each(volumes, tmp_path):
    label_map = LabelMap.plain(["background", "lesion"])
    labels, images = volumes
    names = sorted(images)
    for n, part in enumerate((names[:3], names[3:])):
        mine = {name: images[name] for name in part}
        write_run(tmp_path / f"run/fold_{n}", labels, mine, label_map, seed=n)
    (tmp_path / "run/config.yaml").write_text("recipe: baseline\n")
    folders = [tmp_path / f"run/fold_{n}/validation" for n in range(2)]
    merged = merge_folds(folders, tmp_path / "run/validation").content
    # A run that has moved still shows its cases.
    shutil.move(tmp_path / "run", tmp_path / "moved")
    parsed = Page(build_report(tmp_path / "moved").read_text("utf-8"))
    words = parsed.text
    order = [
        words.index(title) for title in ("Validation cases of all folds", "fold 0 validation", "fold 1 val")
    ]
    assert order == sorted(order)
    chapter = words[words.index("Validation cases of all folds 6 cases") : words.rindex("fold 0 validation")]
    spread = merged["over_folds"]["lesion"]["dice"]
    assert f"Dice {decimals(spread['mean'])} {decimals(spread['std'])}" in chapter
    assert "Standard deviation fold 0 3 cases fold 1 3 cases" in chapter
    assert "segmented by the one of 2 models that was not trained on it" in chapter
    assert "no longer where" not in words


def test_a_run_whose_cases_all_failed_still_has_a_report(run, tmp_path):
    from scotoma.evaluation.evaluate import evaluate

    out = tmp_path / "run/validation"
    out.mkdir(parents=True)
    content = json.loads((run / "validation/prediction.json").read_text())
    content |= {"cases": {}, "failed": {"p0": "p0.nii.gz: cannot be read."}}
    (out / "prediction.json").write_text(json.dumps(content))
    labels = Path(json.loads((run / "validation/evaluation.json").read_text())["truth"])
    evaluate(out, labels, out=out)
    words = Page(build_report(tmp_path / "run").read_text("utf-8")).text
    assert "p0.nii.gz: cannot be read" in words
    assert "No case could be evaluated" in words


def test_data_are_summarised(run, tmp_path):
    from scotoma.data.fingerprint import Fingerprint

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    summary = {"voxels": 9, "share": 0.0007, "cases": 3, "lesions": 12, "lesions_per_case": (1.0, 4.0, 7.0),
               "diameter": (1.0, 2.0, 3.5, 5.0, 9.0)}  # fmt: skip
    spot = {"voxels": 8, "minimum": 0, "p0_5": 0, "p5": 0, "median": 1, "p95": 1, "p99_5": 1, "maximum": 1,
            "mean": 1, "deviation": 1}  # fmt: skip
    case = {"id": "a", "patient": "a", "shape": [4, 5, 6], "spacing": [1, 1, 4], "affine": [[1]],
            "unit": "mm", "channels": 2, "kind": "mri", "whole": [spot, spot]}  # fmt: skip
    found = Fingerprint.model_validate({
        "cases": [case], "label_map": {"classes": ["background", "lesion"], "values": {0: 0, 1: 1}},
        "kind": "mri", "kind_reason": "", "channels": 2, "unit": "mm",
        "median_shape": [4, 5, 6], "median_spacing": [1, 1, 4],
        "labelled": 1, "foreground_share": 0.0007, "classes": {"lesion": summary}, "foreground": None,
    })  # fmt: skip
    (copy / "fingerprint.json").write_text(found.model_dump_json())
    words = Page(build_report(copy).read_text("utf-8")).text
    for part in (
        "4 × 5 × 6 voxels",
        "1 × 1 × 4 mm",
        "0.07 %",
        "T1, FLAIR",
        "2 train, 1 validation",
        "3.5 (1–9) mm",
    ):
        assert part in words


def test_unreadable_files_are_named(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "plan.json").write_text("{")
    with pytest.raises(InputError, match=r"plan\.json"):
        build_report(copy)
    with pytest.raises(InputError, match="no such folder"):
        build_report(tmp_path / "nowhere")
    (copy / "plan.json").unlink()
    (copy / "validation/evaluation.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match="another version"):
        build_report(copy)
