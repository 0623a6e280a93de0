"""The report of a run: report.html, which needs nothing but a browser, and report.png.

``numbers`` says what is shown, ``page`` and ``chart`` lay it out as HTML and SVG, ``style`` is how it looks and
``picture`` draws the PNG. Nothing here imports torch; matplotlib (extra ``report``) is imported for the PNG only.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from runtime.errors import MissingExtraError
from runtime.output import ResultFile, not_written, part_of
from runtime.report.page import render_page
from runtime.run_log import Run

__all__ = ["render_page", "write_report"]


def write_report(
    run: Run, folder: str | Path, *, png: bool | None = None, pictures: Mapping[int, bytes] | None = None
) -> list[Path]:
    """Write ``report.html`` and ``report.png`` into ``folder``; the paths written.

    ``png`` None draws it where matplotlib is installed; True raises MissingExtraError where it is not.
    ``pictures`` (clip number -> JPEG bytes, small) are embedded only when given. Each file appears whole or not
    at all; OutputError says which could not be written.
    """
    folder = Path(folder)
    html, image = folder / "report.html", folder / "report.png"
    with ResultFile(html) as file:
        file.write(render_page(run, pictures or {}))
    if png is False:
        return [html]
    try:
        from runtime.report.picture import draw_png
    except MissingExtraError:
        if png:
            raise
        return [html]
    _write_whole(image, draw_png(run))
    return [html, image]


def _write_whole(path: Path, content: bytes) -> None:
    part = part_of(path)
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        part.unlink(missing_ok=True)
