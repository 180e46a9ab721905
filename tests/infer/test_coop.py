"""Models that draw together, on tiny ones: what must not change, what must, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.infer.coop import CoopConfig, CoopDraw, ImageBridge, InfluenceConfig, Reused
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.models.bridge import resampling

PROMPTS = ["a red bus", "一只狐狸"]


@pytest.fixture(scope="module")
def pipeline(model_folder):
    return PanGuDraw.from_pretrained(model_folder, "CPU")


def together(folder, weights, output="wide", **changes):
    members = {name: {"model": str(folder), "size": size} for name, size in (("small", "32x32"), ("wide", "48x32"))}
    return CoopDraw(parse({"members": members, "output": output, "weights": weights, **changes}, CoopConfig, "test"))


def latents(drawings):
    return np.stack([drawing.latents for drawing in drawings])


def test_a_model_that_nobody_influences_draws_what_it_draws_alone(model_folder, pipeline, uncompiled):
    drawn = together(model_folder, {})(PROMPTS, steps=3, seed=5, n=2)
    alone = pipeline(PROMPTS, steps=3, seed=5, n=2, size="48x32")
    np.testing.assert_array_equal(latents(drawn), latents(alone))
    assert [(d.prompt, d.settings["seed"]) for d in drawn] == [(p, seed) for p in PROMPTS for seed in (5, 6)]
    np.testing.assert_array_equal(np.asarray(drawn[1].image), np.asarray(alone[1].image))


def test_a_model_that_draws_with_itself_in_one_space_is_itself(model_folder, pipeline, uncompiled):
    config = {
        "members": {name: {"model": str(model_folder)} for name in "ab"},
        "output": "a",
        "weights": {"a": {"b": {"share": 0.3}}, "b": {"a": {"share": 0.6, "fade": True}}},
        "one_noise": True,
    }
    drawn = CoopDraw(parse(config, CoopConfig, "test"))(PROMPTS, steps=3)
    np.testing.assert_allclose(latents(drawn), latents(pipeline(PROMPTS, steps=3)), atol=1e-4)


def test_a_guest_changes_the_picture_by_its_share(model_folder, pipeline, uncompiled):
    alone = latents(pipeline(PROMPTS, steps=3, size="48x32"))
    moved = [
        np.abs(latents(together(model_folder, {"wide": {"small": {"share": d}}})(PROMPTS, steps=3)) - alone).mean()
        for d in (0.01, 0.5)
    ]
    assert 0 < moved[0] < moved[1]


def test_pictures_do_not_depend_on_the_batch(model_folder, uncompiled):
    coop = together(model_folder, {"wide": {"small": {"share": 1.0, "above": 500}}})
    seen = []
    drawn = coop(PROMPTS, steps=4, n=2, batch=3, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(latents(drawn), latents(coop(PROMPTS, steps=4, n=2)), atol=1e-4)
    assert seen == [(done, 8) for done in range(1, 9)]  # two batches of four steps
    assert drawn[0].settings["coop"]["weights"]["wide"]["small"]["above"] == 500


def test_a_seed_for_each_picture_is_what_that_seed_draws(model_folder, uncompiled):
    coop = together(model_folder, {"wide": {"small": {"share": 0.5}}})
    each = coop(["a fox"] * 2, steps=2, seed=(8, 7), batch=2)
    one = coop(["a fox"], steps=2, seed=7, n=2)
    np.testing.assert_allclose(latents(each), latents(one)[::-1], atol=1e-5)


def test_a_callback_sees_the_picture_that_is_drawn_and_can_stop(model_folder, uncompiled):
    """While the output sleeps, the picture of the member that will wake it, which is smaller."""
    coop = together(model_folder, {"wide": {"small": {"share": 1.0, "above": 500}}})
    seen = []
    coop(["a fox"], steps=4, on_step=lambda state: seen.append((state.step, state.pictures[0].size)))
    assert seen == [(0, (32, 32)), (1, (32, 32)), (2, (48, 32)), (3, (48, 32))]
    stopped = coop(["a fox"], steps=4, on_step=lambda state: state.step < 2)[0]
    assert stopped.settings["stopped_after"] == 3 and stopped.image.size == (48, 32)


def test_the_image_bridge_decodes_resizes_and_encodes(pipeline):
    from mindspore import Tensor

    from mindpangu.images import to_model

    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    x0 = pipeline.vae.encode(Tensor(to_model([np.asarray(smooth)])))
    there = ImageBridge(pipeline.vae, pipeline.vae, (32, 32), (48, 32))(x0)
    decoded = pipeline.vae.decode(x0).asnumpy()[0]
    resized = np.stack([np.asarray(Image.fromarray(c).resize((48, 32), Image.Resampling.LANCZOS)) for c in decoded])
    expected = pipeline.vae.encode(Tensor(resized[None])).asnumpy()
    np.testing.assert_allclose(there.asnumpy(), expected, atol=1e-2 * np.abs(expected).max())


@pytest.mark.parametrize(("before", "after"), [(7, 19), (64, 24), (5, 5), (3, 100)])
def test_resampling_is_pillows(before, after):
    line = np.random.default_rng(0).standard_normal((1, before)).astype(np.float32)
    pillow = np.asarray(Image.fromarray(line).resize((after, 1), Image.Resampling.LANCZOS))
    np.testing.assert_allclose(line @ resampling(before, after).T, pillow, atol=1e-5)


def test_a_bridge_may_be_crossed_now_and_then():
    crossed = []
    bridge = Reused(lambda x: crossed.append(x) or 10 * x, 3)
    assert [bridge(x) for x in range(1, 6)] == [10, 10, 10, 40, 40]
    assert crossed == [1, 4]


def test_an_influence_over_the_noise_levels():
    assert [InfluenceConfig(0.5).at(t, 999) for t in (0, 999)] == [0.5, 0.5]
    assert [InfluenceConfig(0.8, above=500).at(t, 999) for t in (499, 500, 999)] == [0.0, 0.8, 0.8]
    assert [InfluenceConfig(0.8, above=199, fade=True).at(t, 999) for t in (100, 199, 599, 999)] == [0.0, 0.0, 0.4, 0.8]
    assert [InfluenceConfig(0.8, below=600).at(t, 999) for t in (0, 599, 600)] == [0.8, 0.8, 0.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"weights": {"wide": {"smal": {"share": 1}}}}, "member 'smal' is unknown; there are small, wide"),
        ({"weights": {"wide": {"wide": {"share": 1}}}}, "wide is itself what the others leave"),
        ({"weights": {"wide": {"small": {"share": 1.5}}}}, "share is 1.5; 0 to 1 is allowed"),
        ({"weights": {"wide": {"small": {"share": 0.5, "above": 500, "below": 400}}}}, "above < below is needed"),
        ({"weights": {"wide": {"small": {"share": 2, "effect": True}}}}, "effect is that of controls, and small has"),
        ({"output": "tall"}, "member 'tall' is unknown"),
        ({"bridge_every": 0}, "bridge_every is 0"),
        ({"one_noise": True}, "one_noise: latents of different shapes"),
        ({"members": {"small": {"model": "?"}, "wide": {"model": "?"}}}, "model '\\?' is neither in the zoo"),
    ],
)
def test_refuses_in_one_line(model_folder, values, words):
    with pytest.raises(UserError, match=words) as caught:
        together(model_folder, **{"weights": {}, **values})
    assert "\n" not in str(caught.value)
