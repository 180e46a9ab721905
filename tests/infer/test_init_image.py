"""Pictures to start from: fitted, kept where they are to be kept, refused where they cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mindpangu.errors import UserError
from mindpangu.infer.init_image import InitImage
from mindpangu.infer.pipeline import PanGuDraw


@pytest.fixture(scope="module")
def pipeline(model_folder):
    return PanGuDraw.from_pretrained(model_folder, "CPU")


@pytest.fixture
def files(tmp_path):
    """A half transparent red picture and a mask that is light on the right, both twice the size that is asked for."""
    Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(tmp_path / "init.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def test_a_picture_is_fitted_and_laid_on_white(files):
    init_image = InitImage.open(files / "init.png", files / "mask.png", (32, 32))
    assert init_image.picture.shape == (32, 32, 3)
    np.testing.assert_allclose(init_image.picture[4, 4], (255, 127, 127), atol=1)
    assert init_image.mask[:, :15].max() == 0
    assert init_image.mask[:, 17:].min() == 1
    cells = init_image.latent_mask(8)[0, 0]
    assert cells.shape == (4, 4)
    assert cells[:, 3].all() and not cells[:, 0].any()


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "CMYK", "LA"])
def test_any_mode_of_picture_opens(mode, tmp_path):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (20, 10)).save(path)
    assert InitImage.open(path, None, (32, 16)).picture.shape == (16, 32, 3)


def test_strength_is_how_far_it_goes(pipeline, files):
    init_image = InitImage.open(files / "init.png", None, (32, 32))
    round_trip = _round_trip(pipeline, init_image.picture)
    distances = []
    for strength in (0.02, 0.5, 1.0):
        drawn = pipeline("a fox", init_image=init_image, strength=strength, steps=50)[0]
        distances.append(np.abs(np.asarray(drawn.image, int) - round_trip).mean())
    assert distances[0] < 3 < distances[2]
    assert distances == sorted(distances)
    assert drawn.settings["strength"] == 1.0
    assert drawn.settings["init_image"] == init_image.digest


def _round_trip(pipeline, picture):
    from mindspore import Tensor

    from mindpangu.images import to_model, to_pictures

    return to_pictures(pipeline.vae.decode(pipeline.vae.encode(Tensor(to_model([picture])))).asnumpy())[0].astype(int)


def test_pixels_outside_the_mask_are_the_pictures_own(pipeline, files):
    init_image = InitImage.open(files / "init.png", files / "mask.png", (32, 32))
    for drawing in pipeline("a fox", init_image=init_image, strength=1.0, steps=3, n=2):
        image = np.asarray(drawing.image)
        np.testing.assert_array_equal(image[:, :15], init_image.picture[:, :15])
        assert np.abs(image[:, 20:].astype(int) - init_image.picture[:, 20:]).mean() > 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("absent.png", None), "no such file"),
        (("text.png", None), "not a readable picture"),
        (("init.png", "wide.png"), r"the mask is 30x10 and the picture 64x64"),
        (("init.png", "black.png"), "black throughout"),
    ],
)
def test_what_cannot_be_used_is_one_line(files, arguments, words):
    (files / "text.png").write_text("no picture")
    Image.new("L", (30, 10), 255).save(files / "wide.png")
    Image.new("L", (64, 64), 0).save(files / "black.png")
    picture, mask = (None if name is None else files / name for name in arguments)
    with pytest.raises(UserError, match=words) as caught:
        InitImage.open(picture, mask, (32, 32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"), [({"strength": 0.0}, "above 0"), ({"size": "48x32"}, "they must be equal")]
)
def test_requests_that_contradict(pipeline, files, options, words):
    init_image = InitImage.open(files / "init.png", None, (32, 32))
    with pytest.raises(UserError, match=words):
        pipeline("a fox", init_image=init_image, **options)
