"""Line drawings: where the edges are, which way round they come, and how they stand in a scene."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mindpangu.data.examples import DataConfig, Examples
from mindpangu.data.lines import LineDrawings, as_lines, edges, light_on_dark
from tests.cli.test_commands import mindpangu
from tests.tiny import with_lines


def square(inside=200, outside=20):
    picture = np.full((48, 48, 3), outside, np.uint8)
    picture[12:36, 12:36] = inside
    return picture


@pytest.mark.parametrize("picture", [square(), square(20, 200)])
def test_edges_are_where_the_brightness_jumps(picture):
    found = edges(picture)
    rows, columns = np.nonzero(found)
    assert found[24, [11, 12, 35, 36]].any()
    assert 80 <= len(rows) <= 160  # the outline, a pixel thin, or two where both are as near
    away = np.maximum(np.abs(rows - 23.5), np.abs(columns - 23.5))
    assert (np.abs(away - 12) <= 2).all()
    assert not edges(np.full((48, 48, 3), 90, np.uint8)).any()


def test_drawings_are_light_on_dark_whichever_way_they_came():
    dark = as_lines(edges(square()))
    np.testing.assert_array_equal(light_on_dark(dark), dark)
    np.testing.assert_array_equal(light_on_dark(255 - dark), dark)


def test_a_scenes_lines_lie_on_its_picture(tmp_path):
    with_lines(tmp_path)
    examples = Examples(DataConfig(tmp_path, ("noto",), compositions=0.5), seed=2)
    lines = LineDrawings(examples)
    for i in range(8):
        scene = examples.scene(i, (128, 128))
        drawn, picture = lines(scene), examples.image(scene)
        assert drawn.shape == picture.shape
        y, x = np.nonzero(drawn[..., 0] > 100)
        inside = np.zeros((128, 128), bool)
        for one in scene.placed:
            half = one.side / 2 + 1
            rows, columns = np.ogrid[:128, :128]
            inside |= (abs(rows - one.y) <= half) & (abs(columns - one.x) <= half)
        assert len(y) > 20
        assert inside[y, x].all()


def test_the_command_draws_edges_of_any_picture(tmp_path):
    picture = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((15, 10, 45, 30), fill=(200, 30, 30, 255))
    picture.save(tmp_path / "red.png")
    done = mindpangu("edges", str(tmp_path / "red.png"))
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "red-edges.png") as drawn:
        assert drawn.size == (60, 40)
        assert set(np.unique(np.asarray(drawn))) == {0, 255}
    for arguments, words in (
        ([str(tmp_path / "none.png")], "no such file"),
        ([str(tmp_path / "red.png"), "--low", "0.5", "--high", "0.1"], "low <= high"),
    ):
        done = mindpangu("edges", *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
