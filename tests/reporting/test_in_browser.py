"""The page in headless Chromium: it sorts, hides outlines, follows the theme, fits a narrow screen."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from report_samples import write_anomaly_run

from scotoma.reporting.report import build_report

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--virtual-time-budget=2000",
)  # fmt: skip

PROBE = """
const out = {};
const table = document.querySelector(".scroll.tall table");
const heads = [...table.tHead.rows[0].cells];
const column = heads.findIndex((h) => h.textContent.trim().startsWith("Dice"));
const read = () => [...table.tBodies[0].rows].map((r) => r.cells[column].dataset.sort);
out.before = read();
heads[column].querySelector("button").click();
out.rising = read();
out.state = heads[column].getAttribute("aria-sort");
heads[column].querySelector("button").click();
out.falling = read();
heads[0].querySelector("button").click();
out.names = [...table.tBodies[0].rows].map((r) => r.cells[0].textContent.trim());
const gallery = document.querySelector("[data-outlines]");
const path = gallery.querySelector(".picture path.outline.on-truth");
out.shown = getComputedStyle(path).display;
gallery.querySelector("input[data-hides=truth]").click();
out.hidden = getComputedStyle(path).display;
out.width = [document.documentElement.scrollWidth, innerWidth];
out.images = [...document.images].every((i) => i.complete && i.naturalWidth > 0);
document.body.dataset.probe = JSON.stringify(out);
"""


def chromium(tmp_path: Path, page: Path, *flags: str) -> str:
    profile = tmp_path / "profile"
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Path:
    return build_report(run, tmp_path_factory.mktemp("browser") / "report.html")


@pytest.fixture(scope="module")
def probed(page, tmp_path_factory) -> dict:
    """What a script found that was let in beside the page's own, under the page's own policy."""
    text = page.read_text("utf-8").replace('loading="lazy"', "")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    text = text.replace(
        "</body>", f"<script>{PROBE}</script><script>document.body.dataset.foreign = 1</script></body>"
    )
    folder = tmp_path_factory.mktemp("probe")
    (folder / "page.html").write_text(text, "utf-8")
    dom = chromium(folder, folder / "page.html", "--dump-dom", "--window-size=500,900")
    assert "data-foreign" not in re.sub(r"<script>.*?</script>", "", dom, flags=re.S), (
        "the policy let a script in"
    )
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found, "the page's script did not run"
    return json.loads(html.unescape(found[1]))


def test_tables_sort_both_ways_with_undefined_last(probed):
    rising = [v for v in probed["rising"] if v]
    assert sorted(probed["before"]) == sorted(probed["rising"])
    assert [float(v) for v in rising] == sorted(float(v) for v in rising)
    assert probed["falling"][: len(rising)] == rising[::-1]
    assert all(v == "" for v in [*probed["rising"], *probed["falling"]][len(rising) : len(probed["rising"])])
    assert probed["state"] == "ascending"
    assert probed["names"] == sorted(probed["names"])


def test_outlines_can_be_hidden(probed):
    assert probed["shown"] != "none"
    assert probed["hidden"] == "none"


def test_all_pictures_are_decoded(probed):
    assert probed["images"]


def test_a_narrow_screen_needs_no_sideways_scrolling(probed):
    content, window = probed["width"]
    assert content <= window


def test_anomaly_maps_on_a_narrow_screen(tmp_path):
    """Pictures are decoded, stand in pairs of one size, and no part is wider than the screen."""
    page = build_report(write_anomaly_run(tmp_path), tmp_path / "maps.html")
    script = """
    const out = {};
    const pair = [...document.querySelectorAll(".case .views")[0].querySelectorAll(".picture")];
    out.sizes = pair.map((p) => [p.clientWidth, p.clientHeight]);
    out.width = [document.documentElement.scrollWidth, innerWidth];
    out.images = [...document.images].every((i) => i.complete && i.naturalWidth > 0);
    document.body.dataset.probe = JSON.stringify(out);
    """
    text = page.read_text("utf-8").replace('loading="lazy"', "")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    dom = chromium(tmp_path, page, "--dump-dom", "--window-size=500,900")
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found, "the script did not run"
    probed = json.loads(html.unescape(found[1]))
    assert probed["images"]
    assert probed["sizes"][0] == probed["sizes"][1]
    assert min(probed["sizes"][0]) > 100
    assert probed["width"][0] <= probed["width"][1]


def test_light_and_dark_follow_the_system(page, tmp_path):
    levels = []
    for scheme in (1, 0):  # Blink's numbers for light and dark
        shot = tmp_path / f"{scheme}.png"
        chromium(tmp_path, page, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}",
                 "--window-size=900,1200")  # fmt: skip
        pixels = np.asarray(Pillow.open(shot).convert("L")).astype(int)
        levels.append(pixels[4, 4])
        assert abs(pixels - pixels[4, 4]).max() > 120, "text must stand out"
    assert levels[0] > 230
    assert levels[1] < 50
