"""The pipeline on a tiny model: settings, independence of pictures, refusals."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mindpangu import runtime, zoo
from mindpangu.data.lexicon import nouns
from mindpangu.data.phrases import FRAMES
from mindpangu.errors import UserError
from mindpangu.infer.contact_sheet import NO_CHARACTER, contact_sheet, length, runs, wrap
from mindpangu.infer.drawing import noise_of
from mindpangu.infer.image_file import read_settings, redraw, save_drawing, save_drawings
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.infer.request import OPTION_NAMES, Request


@pytest.fixture(scope="module")
def pipeline(model_folder):
    return PanGuDraw.from_pretrained(model_folder, "CPU")


def test_draws_in_both_languages_and_sizes(pipeline):
    drawings = pipeline(["a red bus", "一只狐狸"], steps=3, size="48x32", styles={"fluent_3d": 2.0}, n=2)
    assert [d.settings["seed"] for d in drawings] == [0, 1, 0, 1]
    assert all(d.image.size == (48, 32) for d in drawings)
    assert not np.array_equal(np.asarray(drawings[0].image), np.asarray(drawings[1].image))


def test_the_noise_is_the_seeds_alone_and_picture_i_has_seed_plus_i():
    noise = noise_of([7, 8], (4, 4, 4), 0).asnumpy()
    np.testing.assert_array_equal(noise[1], noise_of([8], (4, 4, 4), 0).asnumpy()[0])
    others = [noise_of([7], (4, 4, 4), *other).asnumpy()[0] for other in ((1,), (0, 1))]
    assert not any(np.array_equal(noise[0], other) for other in (noise[1], *others))
    request = Request(prompts=("a", "b"), n=2, seed=5)
    assert [(request.prompt_of(i), request.seed_of(i)) for i in range(4)] == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]


def test_a_picture_depends_on_its_seed_and_prompt_alone(pipeline):
    alone = pipeline("a red bus", steps=3, seed=5)[0]
    among = pipeline(["a fox", "a red bus", "dog"], steps=3, seed=5, n=2)[2]
    assert among.prompt == "a red bus"
    difference = np.asarray(alone.image, int) - np.asarray(among.image, int)
    assert np.abs(difference).max() <= 1  # the batch's size may change the last bit of a sum


def test_with_a_seed_for_each_picture_each_is_what_its_seed_alone_draws(pipeline):
    together = pipeline(["a fox", "dog"], steps=2, n=2, seed=[4, 5, 6, 4], batch=3)
    for drawing, prompt, seed in zip(together, ("a fox", "a fox", "dog", "dog"), (4, 5, 6, 4)):
        alone = pipeline(prompt, steps=2, seed=seed)[0]
        assert {**drawing.settings, "batch": 1} == alone.settings
        np.testing.assert_allclose(drawing.latents, alone.latents, atol=1e-4)


def test_weights_in_half_precision_draw_the_same_picture(pipeline, model_folder):
    """The checkpoint is fp16, and a weight is widened before it is used."""
    halved = PanGuDraw.from_pretrained(model_folder, "CPU", dtype="fp16")
    assert {str(p.dtype) for p in halved.unets[0].cells.whole.get_parameters() if p.ndim > 1} == {"Float16"}
    for one, other in zip(*(model("a red bus", steps=3, seed=5) for model in (pipeline, halved))):
        np.testing.assert_array_equal(one.latents, other.latents)
        np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))


def test_a_picture_drawn_in_16_bits_says_so_and_is_drawn_again_in_them_alone(pipeline, model_folder, monkeypatch):
    wide = pipeline("a red bus", steps=3, seed=5)[0]
    assert "compute_dtype" not in wide.settings
    monkeypatch.setenv(runtime.COMPUTE_DTYPE, "bf16")
    narrow = PanGuDraw.from_pretrained(model_folder, "CPU")
    drawn = narrow("a red bus", steps=3, seed=5)[0]
    assert 0 < np.linalg.norm(drawn.latents - wide.latents) / np.linalg.norm(wide.latents) < 0.05
    assert drawn.settings["compute_dtype"] == "bf16"
    np.testing.assert_array_equal(redraw(narrow, drawn.settings).latents, drawn.latents)
    monkeypatch.delenv(runtime.COMPUTE_DTYPE)
    with pytest.raises(UserError, match="drawn in bf16, and nets compute in fp32 here; set MINDPANGU_COMPUTE_DTYPE=bf"):
        redraw(pipeline, drawn.settings)


def test_other_prompts_compile_nothing_anew(pipeline):
    pipeline("a red bus", steps=2)
    cells = (pipeline.conditioner, pipeline.unets[0].cells.whole, pipeline.vae)
    before = [len(cell.compile_cache) for cell in cells]
    assert before[0]
    pipeline("a fox", steps=2, seed=3)
    assert [len(cell.compile_cache) for cell in cells] == before


def test_refuses_an_unknown_dtype(model_folder):
    with pytest.raises(UserError, match="dtype fp8 is unknown; allowed: auto, fp32, fp16"):
        PanGuDraw.from_pretrained(model_folder, "CPU", dtype="fp8")


def test_a_picture_decoded_in_tiles_is_the_picture(pipeline):
    whole, tiled = (pipeline("dog", steps=2, vae_tile=tile)[0].image for tile in (None, 5))
    assert np.abs(np.asarray(whole, int) - np.asarray(tiled)).max() <= 1


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "ddim"])
def test_every_sampler_runs(pipeline, sampler):
    assert pipeline("dog", steps=2, sampler=sampler, sigmas="karras")[0].image.size == (32, 32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "64x64"}, "it draws 32x32, 48x32"),
        ({"steps": 0}, "at least 1"),
        ({"n": 0}, "at least 1"),
        ({"steps": 1001}, "has 1000"),
        ({"styles": {"notto": 1.0}}, "did you mean 'noto'"),
        ({"sampler": "eulr"}, "did you mean 'euler'"),
        ({"sigmas": "log"}, "allowed: uniform, karras"),
        ({"guidance": float("nan")}, "finite"),
        ({"seed": -2}, "allowed"),
        ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
        ({"batch": 0}, "batch is 0"),
        ({"vae_tile": 0}, "vae_tile is 0"),
    ],
)
def test_refuses_in_one_line(pipeline, options, words):
    with pytest.raises(UserError, match=words) as caught:
        pipeline("dog", **options)
    assert "\n" not in str(caught.value)


def test_refuses_an_empty_prompt(pipeline):
    with pytest.raises(UserError, match="prompt 2 is empty"):
        pipeline(["dog", "  "])


def test_says_when_a_prompt_is_cut(pipeline):
    with pytest.warns(UserWarning, match=r"longer than 12 tokens; its end is not read: .*a fox and a dog"):
        pipeline("a very long prompt about a fox and a dog and a bus and a house and a rocket", steps=1)


def test_style_rows_and_guidance_change_the_picture(pipeline):
    plain, styled = (pipeline("dog", steps=2, styles=styles)[0].image for styles in ({}, {"noto": 1e4}))
    assert np.asarray(plain).tolist() != np.asarray(styled).tolist()


def test_png_carries_its_settings(pipeline, tmp_path):
    drawing = pipeline("一只狐狸", steps=2, seed=7)[0]
    save_drawing(drawing, tmp_path / "fox.png")
    settings = read_settings(tmp_path / "fox.png")
    assert settings["prompt"] == "一只狐狸"
    assert settings["seed"] == 7
    assert settings["steps"] == 2


def test_contact_sheet_holds_every_picture(pipeline):
    drawings = pipeline(["a red bus", "一只狐狸"], steps=1, n=2)
    sheet = contact_sheet(drawings, columns=2)
    assert sheet.width > 2 * 32
    assert sheet.height > 2 * 32


def test_every_character_of_a_caption_is_drawn():
    said = [one.emoji for one in nouns().values()] + [*FRAMES["zh"], "渲染 лиса จิ้งจอก ثعلب ①★→"]
    for text in said:
        for font, part in runs(text):
            missing = bytes(font.getmask(NO_CHARACTER))
            letters = [c for c in part if not c.isspace() and not unicodedata.category(c).startswith("M")]
            assert missing not in [bytes(font.getmask(c)) for c in letters], (text, part)
    assert wrap("draw a 🦊", 1000) == ["draw a 🦊"]
    assert length("a 🦊") > length("a ")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "vae.safetensors").write_bytes(b"x"), "vae.safetensors: size check failed"),
        (lambda f: _flip_last_byte(f / "texture.safetensors"), "texture.safetensors: SHA-256 check failed"),
        (lambda f: (f / "structure.json").unlink(), "structure.json: no such file"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
        (lambda f: (f / "model.json").write_text("{}"), "model.json: name: missing"),
    ],
)
def test_a_damaged_model_names_the_file_and_the_check(model_folder, tmp_path, damage, words):
    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    damage(copy)
    with pytest.raises(UserError, match=words):
        PanGuDraw.from_pretrained(copy)


def test_a_folder_of_old_names_draws_the_same(model_folder, pipeline, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    for part, old in zoo.OLD_FILES.items():
        for path in copy.glob(f"{part}.*"):
            path.rename(path.with_name(old + path.suffix))
    described = json.loads((copy / "model.json").read_text())
    described["towers"] = [zoo.OLD_FILES[encoder] for encoder in described.pop("text_encoders")]
    described["told"] = described.pop("added_cond")
    (copy / "model.json").write_text(json.dumps(described))
    options = {"steps": 2, "seed": 3}
    again = PanGuDraw.from_pretrained(copy)("a fox", **options)[0]
    np.testing.assert_array_equal(again.latents, pipeline("a fox", **options)[0].latents)


def _flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_callback_sees_every_step_and_can_stop(pipeline):
    seen = []
    whole = pipeline("a fox", steps=4, on_step=lambda state: seen.append(state.step))[0]
    assert seen == [0, 1, 2, 3]
    stopped = pipeline("a fox", steps=4, on_step=lambda state: state.step < 1)[0]
    early = []
    pipeline("a fox", steps=4, on_step=lambda state: early.append(state.denoised.asnumpy()[0]))
    np.testing.assert_array_equal(stopped.latents, early[1])
    assert stopped.settings["stopped_after"] == 2 and "stopped_after" not in whole.settings
    np.testing.assert_array_equal(redraw(pipeline, stopped.settings).latents, stopped.latents)
    assert not np.array_equal(np.asarray(whole.image), np.asarray(stopped.image))


def test_latents_go_in_and_come_out(pipeline):
    plain = pipeline(["a fox", "a cup"], steps=2, seed=3)
    noise = noise_of([3, 3], plain[0].latents.shape, 0).asnumpy()
    given = pipeline(["a fox", "a cup"], steps=2, seed=99, latents=noise)
    for one, other in zip(plain, given):
        np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))
        np.testing.assert_array_equal(one.latents, other.latents)
    with pytest.raises(UserError, match=r"shape \(1, 4, 4, 4\); \(2, 4, 4, 4\) is needed"):
        pipeline(["a fox", "a cup"], latents=noise[:1])


def test_prompt_weights_move_the_prediction_and_one_does_not(pipeline):
    noise = np.random.default_rng(0).standard_normal((1, 4, 4, 4), np.float32)
    plain, one, more, none = (
        pipeline(prompt, steps=2, guidance=20.0, latents=noise)[0].latents
        for prompt in ("red fox", "(red:1) fox", "(red:2.5) fox", "(red:0) fox")
    )
    np.testing.assert_allclose(one, plain, atol=1e-5)
    assert np.abs(more - plain).max() > 1e-5
    assert np.abs(none - more).max() > np.abs(none - plain).max()


def test_rescale_is_checked_and_said(pipeline):
    assert pipeline("a fox", steps=1, rescale=0.7)[0].settings["rescale"] == 0.7
    with pytest.raises(UserError, match=r"rescale is 2.0; 0 to 1"):
        pipeline("a fox", rescale=2)


def test_every_option_of_a_drawing_is_generates_and_a_rows_and_in_the_metadata(pipeline):
    """An option is said once, in SamplingOptions: all that must know it take it from there."""
    from mindpangu.cli.generate import generate
    from mindpangu.infer.prompt_file import Row

    written = {"styles": "style"}  # typer's options are singular
    commands = set(inspect.signature(generate).parameters)
    assert {written.get(name, name) for name in OPTION_NAMES} <= commands
    assert set(OPTION_NAMES) <= {one.name for one in dataclasses.fields(Row)}
    settings = pipeline("a fox", steps=1)[0].settings
    assert set(OPTION_NAMES) - set(settings) == {"strength"}  # which belongs to an init image


def test_guidance_in_a_part_of_the_sampling(pipeline):
    def draw(**options):
        return pipeline("a fox", steps=4, guidance=7.0, seed=3, **options)[0].latents

    whole, none = draw(), pipeline("a fox", steps=4, guidance=1.0, seed=3)[0].latents
    late, early = draw(guidance_start=0.5), draw(guidance_end=0.5)
    np.testing.assert_array_equal(whole, draw(guidance_start=0.0, guidance_end=1.0))
    assert len({one.tobytes() for one in (whole, none, late, early)}) == 4
    np.testing.assert_allclose(draw(guidance_start=0.9), none, atol=2e-2)  # no step of four begins so late
    with pytest.raises(UserError, match="0 ≤ start < end ≤ 1"):
        draw(guidance_start=0.6, guidance_end=0.5)


def test_the_way_from_the_loop_to_a_net_is_short(pipeline, monkeypatch):
    """Eight frames of ours from `drawings` to the UNet's Cell: a reader follows them from top to bottom."""
    import traceback

    from mindpangu.models.loading import SharedUNet

    seen = []
    plain = SharedUNet.__call__

    def watched(self, *inputs):
        root = Path(traceback.__file__).parent
        seen.append([f.name for f in traceback.extract_stack() if root not in Path(f.filename).parents])
        return plain(self, *inputs)

    monkeypatch.setattr(SharedUNet, "__call__", watched)
    pipeline("a fox", steps=1)
    names = seen[0][seen[0].index("drawings") :]
    assert names[:4] == ["drawings", "_denoise", "euler", "_predict"] and len(names) == 8, names


def test_numpys_numbers_are_numbers_and_what_is_none_is_said(pipeline):
    plain = pipeline("a fox", steps=1, seed=3, guidance=4.0)[0]
    for options in (
        {"seed": np.int64(3)}, {"seed": np.array([3])}, {"seed": 3.0}, {"steps": np.int64(1)},
        {"guidance": np.float32(4)},
    ):  # fmt: skip
        drawn = pipeline("a fox", **{"steps": 1, "seed": 3, "guidance": 4.0, **options})[0]
        np.testing.assert_array_equal(drawn.latents, plain.latents)
        json.dumps(drawn.settings)
    assert pipeline("a fox", steps=1, seed=2**64 - 1)[0].settings["seed"] == 2**64 - 1
    chosen = [pipeline("a fox", steps=1, seed=-1)[0].settings["seed"] for _ in range(2)]
    assert chosen[0] != chosen[1] and min(chosen) >= 0
    for wrong in ({"seed": 1.5}, {"steps": "4"}, {"steps": True}, {"guidance": "7"}, {"seed": -2}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            pipeline("a fox", **wrong)
    with pytest.raises(UserError, match="half a character"):
        pipeline("a \ud800 fox")


def test_a_picture_that_is_not_finite_is_refused(pipeline):
    with pytest.raises(UserError, match=r"not finite \(NaN\)"):
        pipeline("a fox", steps=2, guidance=1e30)


def test_threads_draw_one_after_another(pipeline):
    alone = {prompt: pipeline(prompt, steps=3, seed=7)[0].latents for prompt in ("a fox", "a red bus")}
    with ThreadPoolExecutor(2) as pool:
        drawn = dict(zip(alone, pool.map(lambda prompt: pipeline(prompt, steps=3, seed=7)[0].latents, alone)))
    for prompt, latents in alone.items():
        np.testing.assert_array_equal(drawn[prompt], latents)


def test_pictures_are_numbered_on_and_none_is_written_over(pipeline, tmp_path):
    drawings = pipeline("a fox", steps=1, n=2)
    assert save_drawings(drawings, tmp_path, True) == (2, tmp_path / "grid.png")
    assert save_drawings(drawings[:1], tmp_path, True) == (1, tmp_path / "grid-1.png")
    (tmp_path / "0007.png").write_bytes(b"")
    save_drawings(drawings[:1], tmp_path, False)

    def ended():
        yield drawings[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_drawings(ended(), tmp_path, True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "0007.png", "0008.png", "0009.png", "grid-1.png", "grid.png"]
