"""A figure of matplotlib, and what becomes of it: an image, a file, a picture in a page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.files import written
from nlhf_zoo.metrics.figures.styles import RC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure in the style of all, to draw into and to save; inches."""
    import matplotlib as mpl  # slow to import, and needed where something is drawn only
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(RC), warnings.catch_warnings():
        # Names may be in any script: a letter that the font lacks is an empty box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def plain(text: str) -> str:
    """A text that is drawn letter by letter: between two dollars there may be no equation."""
    return text.replace("$", r"\$")


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as an image [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # some of its methods carry no types
    figure.set_dpi(DPI)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_png(image: NDArray[np.uint8], path: Path) -> None:
    """Write an image [height, width, 3] to a file, which is there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    from PIL import Image

    with written(path) as beside:
        Image.fromarray(image).save(beside, format="png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a .png or .svg file, which is there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    if path.suffix.lower() == ".svg":
        with written(path) as beside:
            beside.write_text(_svg(figure), encoding="utf-8")
    else:
        save_png(pixels(figure), path)


def svg_uri(figure: Figure) -> str:
    """A figure as the address of a picture that holds it, for a page: nothing is loaded."""
    text = _svg(figure)
    content = text[text.index("<svg") :].encode()  # without a document type, which has an address
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()


def _svg(figure: Figure) -> str:
    """A figure in SVG. Letters stay letters, in the fonts of whoever looks."""
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nlhf"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def png_uri(path: Path) -> str:
    """A PNG file as the address of a picture that holds it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
