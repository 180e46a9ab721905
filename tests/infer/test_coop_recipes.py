"""The recipes of configs/infer on narrow nets of exactly the layouts that they are for, and lines that steer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mindpangu import runtime
from mindpangu.checkpoint.store import save_checkpoint, save_tensors
from mindpangu.config import dump, load, parse
from mindpangu.diffusion import NoiseSchedule, ScheduleSpec
from mindpangu.errors import UserError
from mindpangu.infer.coop import CoopConfig, CoopDraw
from mindpangu.infer.pipeline import PanGuDraw
from tests.parity.golden_pipelines import build, control_tensors, narrow

CONFIGS = Path(__file__).parents[2] / "configs" / "infer"


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """A circle, dark on a transparent ground, wider than high."""
    picture = Image.new("RGBA", (96, 64), (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((24, 8, 72, 56), outline=(20, 20, 20, 255), width=3)
    path = tmp_path_factory.mktemp("drawing") / "circle.png"
    picture.save(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Narrow models in the folders that the recipes name."""
    runtime.start("CPU")
    from mindpangu.convert.stable_diffusion import convert_controlnet
    from mindpangu.convert.writer import ConversionOptions, write_model
    from mindpangu.models.inventory import find_spec, parts
    from mindpangu.text.vocabularies import clip_bpe

    folder = tmp_path_factory.mktemp("models")
    for family in ("sd15", "sdxl"):
        build(narrow(family), folder / family)
    for kind in ("canny", "openpose"):
        save_tensors(folder / f"{kind}.safetensors", control_tensors(narrow("sd15")))
        convert_controlnet(
            [folder / f"{kind}.safetensors"], narrow("sd15"), folder / f"sd15-{kind}", ConversionOptions("fp32")
        )
    whole = find_spec("pangu_draw_v3")
    unet = replace(
        whole.unets["structure"], model_channels=16, norm_groups=8, head_dim=8, context_dim=32, vector_dim=40
    )
    unet = replace(unet, transformer_depth=(0, 1, 2))
    text = {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    spec = replace(
        whole,
        pipeline=replace(whole.pipeline, size_dim=24),
        unets={"structure": unet, "texture": unet},
        vae=replace(whole.vae, channels=8, norm_groups=8),
        texts={
            "text_encoder": replace(whole.texts["text_encoder"], **text, skip_last=0),
            "text_encoder_2": replace(whole.texts["text_encoder_2"], **text, projection_dim=16),
        },
    )
    rng, shapes = np.random.default_rng(0), parts(spec)

    def read(part, name):
        return (0.1 * rng.standard_normal(shapes[part][name])).astype(np.float32)

    tokenizers = dict.fromkeys(spec.texts, clip_bpe())
    write_model(spec, shapes, read, {}, folder / "pangu_draw_v3", ConversionOptions("fp32"), tokenizers, print)
    return folder


@pytest.mark.parametrize("recipe", ["coop_pangu_sd15_canny", "coop_pangu_sd15_openpose", "coop_sdxl_low_pangu_high"])
def test_recipes_for_real_checkpoints(folders, drawing, uncompiled, recipe):
    config = load(CONFIGS / f"{recipe}.yaml", CoopConfig)
    small = {"1024x1024": "128x128", "512x512": "64x64"}

    def moved(path):
        return Path(str(path).replace("models", str(folders), 1))

    members = {
        name: replace(
            member,
            model=str(moved(member.model)),
            size=small[member.size],
            controls=tuple(replace(one, net=moved(one.net)) for one in member.controls),
        )
        for name, member in config.members.items()
    }
    together = CoopDraw(replace(config, members=members))
    lines = [drawing] if together.looks else []
    drawn = together(["a fox"], lines=lines, steps=3, seed=1)[0]
    assert drawn.image.size == (128, 128)
    assert np.isfinite(drawn.latents).all()
    alone = CoopDraw(replace(config, members=members, weights={}))(["a fox"], lines=lines, steps=3, seed=1)[0]
    assert np.abs(drawn.latents - alone.latents).max() > 1e-3


def words_and_lines(model_folder, line_model, **changes):
    values = {
        "members": {
            "text": {"model": str(model_folder)},
            "line": {"model": str(line_model), "controls": [{"net": str(line_model), "lines": True}]},
        },
        "output": "text",
        "weights": {"text": {"line": {"share": 0.5}}, "line": {"text": {"share": 0.2}}},
    }
    return parse({**values, **changes}, CoopConfig, "test")


def test_a_model_without_words_follows_its_drawing(model_folder, line_model, drawing):
    config = words_and_lines(model_folder, line_model, output="line", weights={})
    together = CoopDraw(config)
    drawn = together(["a dog", "a cat"], lines=[drawing], steps=2, seed=1)
    assert drawn[0].image.size == (32, 32)
    other = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(other).line((0, 0, 40, 40), fill="black", width=3)
    lines = [Image.open(drawing), other]
    each = together(["a dog", "a cat"], lines=lines, steps=2, seed=1, batch=1)
    np.testing.assert_allclose(each[0].latents, drawn[0].latents, atol=1e-4)
    assert np.abs(each[1].latents - drawn[1].latents).max() > 1e-3
    net = together.models[together.output].unets[0].cells.whole
    before = len(net.compile_cache)
    both = together(["a dog", "a cat"], lines=lines, steps=2, seed=1)
    assert len(net.compile_cache) == before  # what the ControlNet adds is an input, not a constant
    for one, same in zip(both, each):
        np.testing.assert_allclose(one.latents, same.latents, atol=1e-4)
    for given in ([], [*lines, drawing]):
        with pytest.raises(UserError, match=f"one, or 2 must be given with line, not {len(given)}"):
            together(["a dog", "a cat"], lines=given)


def test_a_controls_effect_is_what_it_changes(model_folder, line_model, drawing):
    """A control of strength 0 has none; another's is the guest's prediction with its control less that without."""
    effect = {"text": {"line": {"share": 1.5, "effect": True}}}
    config = words_and_lines(model_folder, line_model, weights=effect)
    table = config.table(NoiseSchedule(ScheduleSpec()), 1.0)
    np.testing.assert_array_equal(table, [[1, 1.5, -1.5], [0, 1, 0], [0, 0, 1]])
    alone = CoopDraw(words_and_lines(model_folder, line_model, weights={}))(["a dog"], lines=[drawing], steps=2)
    steered = CoopDraw(config)(["a dog"], lines=[drawing], steps=2)
    assert np.abs(steered[0].latents - alone[0].latents).max() > 1e-3
    members = dump(config)["members"]
    members["line"]["controls"][0]["strength"] = 0.0
    idle = CoopDraw(words_and_lines(model_folder, line_model, weights=effect, members=members))
    np.testing.assert_allclose(idle(["a dog"], lines=[drawing], steps=2)[0].latents, alone[0].latents, atol=1e-4)


def test_a_drawing_is_fitted_whole_and_whichever_way_round(drawing, tmp_path):
    from mindpangu.infer.init_image import read_lines

    seen = read_lines(drawing, (32, 32))
    assert np.median(seen) < 30
    assert seen.max() > 200
    rows = np.flatnonzero(seen.max((1, 2)) > 100)
    assert rows.min() >= 4
    assert rows.max() <= 27  # a third of 32 is margin: nothing was cut
    flat = Image.new("RGB", (96, 64), "white")
    flat.paste(Image.open(drawing), mask=Image.open(drawing))
    Image.fromarray(255 - np.asarray(flat)).save(tmp_path / "light.png")
    np.testing.assert_array_equal(read_lines(tmp_path / "light.png", (32, 32)), seen)
    Image.new("L", (8, 8), 255).save(tmp_path / "blank.png")
    with pytest.raises(UserError, match="blank picture"):
        read_lines(tmp_path / "blank.png", (32, 32))


def test_a_learned_bridge_is_crossed_and_one_that_leads_elsewhere_refused(
    model_folder, line_model, drawing, tmp_path, uncompiled
):
    from dataclasses import asdict

    from mindpangu.models.bridge import LatentBridge
    from mindpangu.spec import BridgeSpec

    spec = BridgeSpec(4, (4, 4), 4, (4, 4), channels=8, blocks=1, norm_groups=4)
    net = LatentBridge(spec)
    for folder, size in (("good", (4, 4)), ("elsewhere", (6, 4))):
        weights = {p.name: p.asnumpy() for p in net.trainable_params()}
        (tmp_path / folder).mkdir()
        save_checkpoint(
            tmp_path / folder / "bridge.safetensors", weights, {"spec": asdict(replace(spec, out_size=size))}
        )
    one_way = {"text": {"line": {"share": 0.5, "bridge": str(tmp_path / "good")}}}
    members = {
        "text": {"model": str(model_folder), "size": "48x32"},
        "line": words_and_lines(model_folder, line_model).members["line"].__dict__ | {"controls": []},
    }
    with pytest.raises(
        UserError, match=r"leads from latents .* \(4, 4, 4\) to \(4, 4, 4\); line has .* text \(4, 4, 6\)"
    ):
        CoopDraw(parse({"members": members, "output": "text", "weights": one_way}, CoopConfig, "t"))(["a"], steps=2)
    one_way["text"]["line"]["bridge"] = str(tmp_path / "elsewhere")
    drawn = CoopDraw(parse({"members": members, "output": "text", "weights": one_way}, CoopConfig, "t"))(["a"], steps=2)
    assert drawn[0].image.size == (48, 32)


def test_windows_draw_larger_than_the_model_knows(model_folder, uncompiled):
    values = {
        "members": {
            "low": {"model": str(model_folder)},
            "high": {"model": str(model_folder), "size": "64x48", "window": "32x32"},
        },
        "output": "high",
        "weights": {"high": {"low": {"share": 1.0, "above": 500}}},
    }
    drawn = CoopDraw(parse(values, CoopConfig, "test"))(["a red bus"], steps=4)[0]
    assert drawn.image.size == (64, 48)
    for size, words in (("64x20", "no side below the window's 32x32"), ("64x50", "multiples of 8")):
        values["members"]["high"]["size"] = size
        with pytest.raises(UserError, match=words):
            CoopDraw(parse(values, CoopConfig, "test"))


def test_a_pixel_model_is_refused_by_name(tmp_path):
    (tmp_path / "pixels").mkdir()
    (tmp_path / "pixels" / "model.json").write_text('{"text_encoders": [], "experts": {"unet": 0}}', encoding="utf-8")
    values = {"members": {"a": {"model": str(tmp_path / "pixels")}}, "output": "a", "weights": {}}
    with pytest.raises(UserError, match=r"pixels' has no autoencoder .* only latent models draw together"):
        CoopDraw(parse(values, CoopConfig, "test"))


def test_the_experiment_on_words_and_lines(model_folder, line_model, drawing, tmp_path, uncompiled):
    """The whole of `eval coop` on tiny nets and a judge of pixels: every way draws, every figure is there."""
    import yaml
    from tqdm import tqdm

    from mindpangu.config import dump
    from mindpangu.evaluation.coop_experiment import COLUMNS, Experiment, shown, table
    from mindpangu.evaluation.found import Found, grid, strip
    from mindpangu.evaluation.judge import Galleries, Pictures
    from tests.evaluation.test_judge import pixels
    from tests.tiny import SAMPLE, STYLES

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dump(words_and_lines(model_folder, line_model))), encoding="utf-8")
    pictures = Pictures.open(SAMPLE, tuple(STYLES), None)
    bound = tmp_path / "bound.yaml"
    alone = {"members": {"text": {"model": str(model_folder)}}, "output": "text", "weights": {}}
    bound.write_text(yaml.safe_dump(alone), encoding="utf-8")
    host = PanGuDraw.from_pretrained(str(model_folder))
    experiment = Experiment(recipe, pictures, Galleries(pictures, pixels), host, 12, 1, bound)
    assert [case.agrees for case in experiment.cases] == [True] * 9 + [False] * 3
    assert {"text alone", "ControlNet", "line alone", "coop", "effect 1.5, below t = 900"} <= set(experiment.ways)
    real = "yardstick: the real picture"
    figures, drawn = {}, {}
    for name in ("text alone", "coop", "effect 1.5, below t = 900", "handed on, strength 0.5", real):
        figures[name], drawn[name] = experiment.measure(experiment.ways[name](), 2, tqdm(disable=True))
    assert set(figures["coop"]) == {*COLUMNS, "frechet", "seconds"}
    # Words and lines can both be obeyed, in the same pictures; what obeys neither scores near nothing.
    # Styles are the judge's to see, and pixels see little of them on a coloured ground.
    yardstick = {key: figures[real][key]["mean"] for key in COLUMNS}
    for key in (
        "text_agree",
        "text_of_all_agree",
        "control_agree",
        "both_agree",
        "ground_conflict",
        "control_conflict",
    ):
        assert yardstick[key] == 1.0, key
    assert yardstick["style_agree"] >= 0.6
    assert yardstick["both_conflict"] == yardstick["style_conflict"]
    assert figures["text alone"]["both_agree"]["mean"] == 0
    assert table(figures).count("\n") == 6
    found, picked = Found.open(tmp_path, experiment.settings), shown(experiment.cases, 4)
    for name, figure in figures.items():
        found.add(name, figure, strip([drawn[name][i] for i in picked]))
    again = Found.open(tmp_path, experiment.settings)
    assert again.figures == found.figures
    assert grid([again.strip(name) for name in figures]).size == (4 * 128, 5 * 128)
    with pytest.raises(UserError, match="give another folder"):
        Found.open(tmp_path, {**experiment.settings, "cases": 13})
    assert np.abs(drawn["coop"][0].astype(int) - drawn["text alone"][0]).max() > 0
