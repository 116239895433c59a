"""The code on the method's page runs, and what it links to is there."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "no-labels.md"


def test_code_blocks_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, PAGE.name, "exec"), names)
        if "candidates" in names:
            best = names["candidates"][0]  # type: ignore[index]
            assert 6 <= best.x <= 9
            assert 10 <= best.y <= 12
            assert 20 <= best.z <= 22


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    local = [t for t in targets if not t.startswith("http")]
    assert local
    for target in local:
        assert (PAGE.parent / target).is_file(), target
