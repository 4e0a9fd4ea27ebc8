"""What figures of games show, read off the drawing itself."""

import base64
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from nlhf_zoo.metrics.figures.canvas import new_figure, pixels, svg_uri
from nlhf_zoo.metrics.figures.games import draw_convergence, draw_preferences, draw_simplex, place


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_theory_starts_where_the_policy_does_and_falls_by_its_rate():
    queries, values = np.arange(0.0, 41, 2), np.geomspace(0.4, 0.01, 21)[:, None] * [1.0, 0.5]
    with new_figure(4, 3) as figure:
        ax = figure.subplots()
        draw_convergence(ax, queries, values, 0.1, "#0072B2", theory=True)
    shown = lines(ax)
    assert set(shown) == {"mean", "worst prompt", r"theory's rate $(1+2\beta)^{-N/2}$"}
    assert shown["worst prompt"].get_ydata() == pytest.approx(values[:, 0])
    _, y = shown[r"theory's rate $(1+2\beta)^{-N/2}$"].get_data()
    assert y[0] == pytest.approx(0.3)  # the mean's start
    assert y[-1] == pytest.approx(0.3 / 1.2**20)  # forty queries are twenty rounds
    assert ax.get_xlabel() == "oracle queries per prompt"
    assert ax.get_ylabel() == "exploitability, β = 0.1"


def test_sampled_queries_have_no_line_of_theory():
    with new_figure(4, 3) as figure:
        ax = figure.subplots()
        draw_convergence(ax, np.arange(3.0), np.ones((3, 1)), 0.1, "#0072B2", theory=False)
    assert set(lines(ax)) == {"policy"}


def test_corners_and_centre_of_the_simplex_lie_where_they_should():
    x, y = place(np.array([*np.eye(3), np.full(3, 1 / 3)]))
    assert np.hypot(np.diff(x[[0, 1, 2, 0]]), np.diff(y[[0, 1, 2, 0]])) == pytest.approx(1)
    assert (x[3], y[3]) == (pytest.approx(x[:3].mean()), pytest.approx(y[:3].mean()))
    with new_figure(4, 3) as figure:
        ax = figure.subplots()
        path = np.array([[1.0, 0, 0], [0.5, 0.25, 0.25]])
        draw_simplex(ax, path, {"reference": (path[0], "s")}, "#0072B2", ("r", "p", "s"))
    assert [text.get_text() for text in ax.texts] == ["r", "p", "s"]
    assert ax.get_legend_handles_labels()[1] == ["reference"]


def test_a_table_has_its_numbers_in_the_cells_and_a_picture_loads_nothing():
    table = np.array([[0.5, 0.9, np.nan], [0.1, 0.5, 0.25], [np.nan, 0.75, 0.5]])
    with new_figure(4, 3) as figure:
        ax = figure.subplots()
        draw_preferences(ax, table, ["<script>", "b", "c"], "P(row over column)")
        image, uri = pixels(figure), svg_uri(figure)
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    assert shown[(1, 0)] == "0.90"
    assert len(shown) == 7  # what is not known is empty
    assert image.shape == (300, 400, 3)
    kind, content = uri.split(",")
    assert kind == "data:image/svg+xml;base64"
    root = ET.fromstring(base64.b64decode(content))  # its names are escaped
    assert "<script>" in "".join(root.itertext())
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
    assert all(link.startswith(("#", "data:")) for link in links)
