"""Models without weights: the release's every parameter has its place, and a model folder says what it holds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mindpangu import runtime
from mindpangu.checkpoint.ldm import BUFFERS, release_names
from mindpangu.errors import UserError
from mindpangu.spec import TEXT_ENCODERS

MANIFEST = Path(__file__).parents[1] / "data" / "pangu_v3_manifest.json.gz"  # [name, shape, dtype] of a released file


@pytest.fixture(scope="module")
def released():
    runtime.start("CPU")
    from mindpangu.models.inventory import find_spec, parts

    return parts(find_spec("pangu_draw_v3"))


@pytest.mark.parametrize("unet", ["structure", "texture"])
def test_every_parameter_of_the_release_has_its_place_and_none_is_left_over(released, unet):
    with gzip.open(MANIFEST) as file:
        theirs = {name: tuple(shape) for name, shape, _ in json.load(file)}
    assert len(theirs) == 2500
    placed = {}
    for part in (unet, "vae", *TEXT_ENCODERS):
        names = release_names("unet" if part == unet else part, released[part])
        placed.update({names[name]: shape for name, shape in released[part].items()})
    assert {name: shape for name, shape in theirs.items() if name not in BUFFERS} == placed
    assert set(BUFFERS) <= set(theirs)


def test_counts_are_the_published_ones(released):
    from mindpangu.models.inventory import parameters

    assert parameters(released["structure"]) == 2_565_825_284
    assert parameters(released["vae"]) == 83_653_863


@pytest.mark.parametrize(("model", "count"), [("sd15", 859_520_964), ("sd21", 865_910_724), ("sdxl", 2_567_463_684)])
def test_counts_of_the_families_are_the_published_ones(model, count):
    from mindpangu.models.inventory import find_spec, parameters, shapes_of

    assert parameters(shapes_of(find_spec(model).unets["unet"])) == count


def test_the_release_draws_any_multiple_of_64_as_the_nearest_of_its_sizes():
    from mindpangu.models.inventory import find_spec

    spec = find_spec("pangu_draw_v3").pipeline
    assert len(spec.sizes) == 21
    assert all(spec.can_draw(size) and spec.nearest_size(size) == size for size in spec.sizes)
    assert spec.nearest_size("1088x1024") == "1024x1024"
    assert spec.nearest_size("512x448") == "576x448"
    assert spec.nearest_size("2048x576") == "2048x512"
    assert not spec.can_draw("1000x1000")
    with pytest.raises(ValueError, match="use WIDTHxHEIGHT"):
        spec.can_draw("large")


def test_a_model_folder_has_the_parts_that_its_files_hold(model_folder):
    from mindpangu.checkpoint.store import load_tensors
    from mindpangu.models.inventory import find_spec, parts

    for part, shapes in parts(find_spec(str(model_folder))).items():
        assert {n: t.shape for n, t in load_tensors(model_folder / f"{part}.safetensors").items()} == shapes


def test_an_unknown_model_is_named_with_what_is_known():
    from mindpangu.models.inventory import find_spec

    with pytest.raises(UserError, match=r"'pangu_draw_v2' is unknown.*did you mean .?pangu_draw_v3"):
        find_spec("pangu_draw_v2")
