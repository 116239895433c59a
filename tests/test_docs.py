"""What README and the pages of docs/methods/ show: code runs, commands parse, settings and files exist."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

from scotoma.config import Settings, load_settings, recipe_names

ROOT = Path(__file__).parents[1]
METHODS = sorted((ROOT / "docs" / "methods").glob("*.md"))
PAGES = [ROOT / "README.md", *METHODS]
SECTIONS = set(Settings.model_fields) - {"recipe", "variant", "seed"}

EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def python_blocks() -> list:
    found = []
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
        found += [pytest.param(page, block, id=f"{page.stem} {n}") for n, block in enumerate(blocks)]
    return found


def lines_of_shell(page: Path) -> list[list[str]]:
    """Words of every command line, and of every line that holds options alone: indented or in backticks."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^ {4}((?:scotoma |--set ).*)$", text, re.MULTILINE)
    lines += re.findall(r"`((?:scotoma |--set )[^`]*)`", text)
    return [shlex.split(re.sub(r"\s+#.*", "", line)) for line in lines]


def page_recipe(page: Path) -> str:
    """The recipe a page is about."""
    return page.stem if page.stem in recipe_names() else "baseline"


def known_settings() -> set[str]:
    from scotoma.losses import Objective

    names = {f"objective.{name}" for name in inspect.signature(Objective).parameters} | {"variant", "seed"}
    for section in SECTIONS - {"objective"}:
        model = Settings.model_fields[section].annotation
        model = next((m for m in getattr(model, "__args__", ()) if m is not type(None)), model)
        names |= {f"{section}.{name}" for name in model.model_fields}  # type: ignore[union-attr]
    return names


def check_settings(recipe: str, pairs: list[str]) -> None:
    """A recipe takes these settings, and the objective is built from them where it needs no file."""
    from scotoma.losses import Objective

    assert {pair.split("=")[0] for pair in pairs} <= known_settings()
    if any(pair.startswith("anomaly.") for pair in pairs):
        recipe = "no-labels"
    settings = load_settings(recipe, overrides=pairs)
    if settings.anomaly is None and settings.objective.get("content_extractor", "random") == "random":
        Objective(2, **settings.objective)


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_code_runs(page: Path, block: str, capsys):
    names: dict[str, object] = {}
    exec(compile(block, page.name, "exec"), names)
    if "candidates" in names:  # the lesion that was put in
        best = names["candidates"][0]  # type: ignore[index]
        assert 6 <= best.x <= 9
        assert 10 <= best.y <= 12
        assert 20 <= best.z <= 22


@EVERY
def test_commands_parse(page: Path):
    from scotoma.cli import app

    group = typer.main.get_command(app)
    lines = lines_of_shell(page)
    assert lines
    recipe = page_recipe(page)
    for words in lines:
        if words[0] == "scotoma":
            _, verb, *options = words
            command = group.commands[verb]  # type: ignore[attr-defined]
            if not options or options == ["--help"]:
                continue
            context = command.make_context(verb, options, parent=None)
            recipe = context.params.get("recipe") or page_recipe(page)
            if verb != "demo":
                assert recipe in recipe_names()
            pairs = context.params.get("settings") or []
        else:
            assert words[::2] == ["--set"] * (len(words) // 2)
            pairs = words[1::2]
        if pairs and pairs != ["section.name=value"]:  # how README explains the form
            check_settings(recipe, pairs)


@EVERY
def test_settings_and_recipes_that_are_named_exist(page: Path):
    known = known_settings()
    for code in re.findall(r"`([^`\n]+)`", text_of(page)):
        name = re.match(rf"((?:{'|'.join(SECTIONS)})\.[a-z_]+)(=|$)", code)
        if name:
            assert name[1] in known, code
        if "=" in code and code.startswith(("variant=", *[f"{section}." for section in SECTIONS])):
            recipe = page_recipe(page) if page in METHODS else "missing-lesions"
            check_settings(recipe, [code])
    for recipe in re.findall(r"--recipe ([a-z-]+)", text_of(page)):
        assert recipe in recipe_names()


@EVERY
def test_links_and_pictures_are_there(page: Path):
    targets = re.findall(r"\]\(([^)#]+)\)", text_of(page))
    local = [t for t in targets if not t.startswith("http")]
    assert local
    for target in local:
        assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name != "baseline"])
def test_every_recipe_has_a_page_that_readme_links(recipe: str):
    page = ROOT / "docs" / "methods" / f"{recipe}.md"
    assert page in METHODS
    assert f"(docs/methods/{recipe}.md)" in text_of(ROOT / "README.md")
    for heading in (
        "## Method",
        "## When to use it, and when not",
        "## Defaults",
        "## From the command line",
    ):
        assert heading in text_of(page)


def pictures():
    path = ROOT / "benchmarks" / "method_figures.py"
    spec = importlib.util.spec_from_file_location("method_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["missing-lesions", "noisy-pixels", "rare-target", "few-labels"])
def test_pictures_are_drawn_alike_every_time(name: str, tmp_path, monkeypatch):
    module = pictures()
    drawn = []
    for folder in ("one", "two"):
        monkeypatch.setattr("sys.argv", ["method_figures.py", name, "--out", str(tmp_path / folder)])
        module.main()
        drawn.append((tmp_path / folder / f"{name}.png").read_bytes())
    assert drawn[0] == drawn[1]
    assert f"(images/{name}.png)" in text_of(ROOT / "docs" / "methods" / f"{name}.md")
