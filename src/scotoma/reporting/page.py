"""From parts to one self-contained HTML file.

Everything is inside: style, script, charts, pictures. A content security policy forbids the page to load
anything, and lets only this package's own script run, so nothing that a file name or a note smuggles in can.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scotoma import __version__
from scotoma.files import write_text


def write_page(out: Path, template: str, content: dict[str, Any]) -> Path:
    """Render a template into a file, which is replaced whole.

    Args:
        out: HTML file.
        template: name in `templates/`.
        content: what the template needs.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("scotoma.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _own("style.css"), _own("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    text = environment.get_template(template).render(
        **content,
        style=Markup(style),
        script=Markup(script),
        policy=Markup(policy),
        version=__version__,
        created=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )
    write_text(out, text)
    return out


def _own(name: str) -> str:
    return resources.files("scotoma.reporting").joinpath("templates", name).read_text("utf-8").strip()
