"""Text distillation: what students learn from, what they start from, and that a UNet then understands them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mindpangu import runtime
from mindpangu.config import parse
from mindpangu.errors import UserError
from mindpangu.train.config import TrainConfig
from tests.conftest import without_graphs
from tests.tiny import training

runtime.start("CPU")
from mindspore import Tensor  # noqa: E402

from mindpangu.checkpoint.store import load_tensors, read_card  # noqa: E402
from mindpangu.models.loading import load_tokenizers  # noqa: E402
from mindpangu.spec import TEXT_ENCODERS  # noqa: E402
from mindpangu.text.vocabulary import Vocabulary  # noqa: E402
from mindpangu.train.diffusion import TrainDiffusion  # noqa: E402
from mindpangu.train.run import run  # noqa: E402
from mindpangu.train.state import states  # noqa: E402
from mindpangu.train.text_distillation import FILE, TrainTextDistillation  # noqa: E402
from mindpangu.train.text_encoders import TOKEN_VECTORS, token_table  # noqa: E402
from mindpangu.train.text_map import TextMap  # noqa: E402


@pytest.fixture(scope="module")
def students(runs):
    """A training of some steps, exported."""
    config = parse(training("students", runs, runner_config={"images": 256, "batch_size": 32}), TrainConfig, "test")
    with without_graphs():
        run(config)
    return config


@pytest.fixture(scope="module")
def task(students):
    with without_graphs():
        yield TrainTextDistillation(students)


def test_students_learn(students):
    lines = [json.loads(line) for line in (students.output_dir / "stats.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert set(read_card(students.output_dir / FILE)["explained"]) == {"tokens", "pooled"}


def test_a_teacher_reads_plain_english_and_says_it_whatever_the_wording(task):
    wordings, plain = zip(*task._captions(range(64)))
    assert all(text.isascii() for text in plain)
    assert sum(not text.isascii() for text in wordings) >= 28  # every second one is Chinese
    assert 0 < sum(text.endswith(", 3D style") for text in plain) < sum("style" in text for text in plain) < 60
    ids = task.batch(0, 64)
    np.testing.assert_array_equal(ids[2], task.teacher_tokenizers[0](plain))
    np.testing.assert_array_equal(ids[1], task.tokenizers[1](wordings))
    np.testing.assert_array_equal(task.batch(0, 64, slice(16, 32))[0], ids[0][16:32])


def test_some_captions_are_empty_and_none_says_what_the_teacher_has_no_words_for(students, uncompiled):
    data = replace(students.data, counts=0.5, stated_sizes=0.5, compositions=0.0)
    plain = {}
    for unknown in ((), ("count", "size")):
        distillation = replace(students.text_distillation, unknown=unknown)
        task = TrainTextDistillation(replace(students, data=data, text_distillation=distillation))
        captions = task._captions(range(256))
        assert 0.01 < np.mean([text == "" for text, _ in captions]) < 0.08
        plain[unknown] = " ".join(text for _, text in captions)
    for word in ("three ", "small "):
        assert word in plain[()] and word not in plain["count", "size"]


def test_the_loss_is_the_error_in_units_of_the_teachers_spread(task):
    """A student that always says the mean scores 1 for tokens, and the weight for pooled features."""
    net = task.loss_net
    for parameter in (net.tokens, net.pooled):
        parameter.set_data(Tensor(np.zeros(parameter.shape, np.float32)))
    loss = float(net(*map(Tensor, task.batch(0, 512))).asnumpy())
    assert loss == pytest.approx(1 + task.task.pooled_weight, rel=0.1)


def test_students_start_from_token_vectors(task, runs):
    task.start_from(runs / "clip")
    for encoder, net in zip(TEXT_ENCODERS, (task.loss_net.text_encoder, task.loss_net.text_encoder_2)):
        stored = load_tensors(runs / "clip" / f"{encoder}.safetensors")
        vectors = next(v for name, v in stored.items() if name.endswith(TOKEN_VECTORS))
        np.testing.assert_array_equal(token_table(net).asnumpy(), vectors.astype(np.float32))


def test_students_go_on_where_another_distillation_left_them(students, uncompiled):
    """What they say is what they said, but for the export's rounding to half."""
    again = TrainTextDistillation(replace(students, load_checkpoint=students.output_dir))
    again.start_from(students.output_dir)
    state = load_tensors(states(students.output_dir)[0])
    for parameter in again.loss_net.trainable_params():
        scale = np.abs(state[parameter.name]).max()
        assert np.abs(parameter.asnumpy() - state[f"average.{parameter.name}"]).max() <= 2e-3 * scale + 1e-7


def test_sentences_have_a_name_among_words_and_the_teacher_reads_the_name(students, uncompiled, monkeypatch):
    from mindpangu.train import text_distillation

    words = {"en": ["alpha", "beta"], "zh": ["甲", "乙"]}
    monkeypatch.setattr(text_distillation, "frequent_words", lambda count: words)
    task = replace(students.text_distillation, sentences=1.0)
    found = TrainTextDistillation(replace(students, text_distillation=task))._captions(range(64))
    said = [(wording, plain) for wording, plain in found if wording]
    assert len(said) > 55
    assert all(any(word in wording for of in words.values() for word in of) for wording, _ in said)
    assert "fox" in {plain for _, plain in said} and not any("," in plain for _, plain in said)


def test_a_unet_of_the_teachers_begins_where_the_maps_bring_the_students(students, task, runs):
    """The folded net on the students' features is the old net on what the maps make of them."""
    values = training("structure", runs, output_dir=str(runs / "structure_of_students"))
    values["diffusion"].update(text=str(students.output_dir), text_map=str(students.output_dir / FILE))
    values["diffusion"]["unet"] = {**values["diffusion"]["unet"], "vector_dim": 32}
    new = TrainDiffusion(parse(values, TrainConfig, "test"))
    new.start_from(runs / "structure" / "unet.safetensors")
    old = TrainDiffusion(parse(training("structure", runs), TrainConfig, "test"))
    old.start_from(runs / "structure" / "unet.safetensors")

    prompts = ["a fox", "画一只狐狸", "the red apple please", ""]
    tokenizers = load_tokenizers(students.output_dir, TEXT_ENCODERS)
    ids = tuple(Tensor(tokenizer(prompts)) for tokenizer in tokenizers)
    context, vector = new.conditioner(ids, Tensor(np.zeros((4, 1), np.float32)))
    maps, pooled = load_tensors(students.output_dir / FILE), vector.asnumpy()[:, :-8]
    mapped = context.asnumpy() @ maps["tokens"] + maps["tokens_bias"]
    vector_before = np.concatenate([pooled @ maps["pooled"] + maps["pooled_bias"], vector.asnumpy()[:, -8:]], 1)
    x = Tensor(np.random.default_rng(0).standard_normal((4, 4, 8, 8)).astype(np.float32))
    t = Tensor(np.array([501.0, 600.0, 800.0, 950.0], np.float32))
    drawn = new.loss_net.unet(x, t, context, vector).asnumpy()
    before = old.loss_net.unet(x, t, Tensor(mapped), Tensor(vector_before)).asnumpy()
    np.testing.assert_allclose(drawn, before, rtol=0, atol=2e-3 * np.abs(before).max())


def test_a_model_packed_with_the_map_draws_by_the_students(students, runs, model_folder, tmp_path):
    from mindpangu.cli.zoo import pack
    from mindpangu.infer.pipeline import PanGuDraw

    parts = {"vae": runs / "vae" / "vae"}
    parts.update({name: students.output_dir / name for name in TEXT_ENCODERS})
    parts.update({name: runs / name / "unet" for name in ("structure", "texture")})

    def packed(name, maps):
        part = [f"{name}={path}" for name, path in parts.items()]
        pack(spec=model_folder.parent / "spec.yaml", part=part, out=tmp_path / name, override=[], text_map=maps)

    packed("model", students.output_dir / FILE)
    with without_graphs():
        model = PanGuDraw.from_pretrained(str(tmp_path / "model"))
        assert model.model.unets["texture"].vector_dim == 24 + 24 - 16
        first, second = model(["a fox", "狐狸"], steps=1, seed=3)
    assert np.abs(first.latents - second.latents).max() > 0
    other = TextMap(*(np.ones(shape, np.float32) for shape in ((32, 20), (20,), (24, 16), (16,))))
    other.save(tmp_path / "other.safetensors", {})
    with pytest.raises(UserError, match="its teacher's tokens have 20 numbers, and structure knows 32"):
        packed("again", tmp_path / "other.safetensors")


def test_the_export_is_a_whole_pair_of_text_encoders(students):
    assert not Vocabulary.load(students.output_dir).unknown("three small foxes")
    assert len(load_tokenizers(students.output_dir, TEXT_ENCODERS)) == 2


def test_what_cannot_be_is_refused(runs, uncompiled):
    values = training("students", runs)
    values["text_distillation"]["text_encoder"] = {**values["text_distillation"]["text_encoder"], "context_length": 10}
    with pytest.raises(UserError, match=r"context_length is 10; the teacher's is 12"):
        TrainTextDistillation(parse(values, TrainConfig, "test"))
    with pytest.raises(UserError, match="load_checkpoint must name"):
        parse({**training("students", runs), "load_checkpoint": None}, TrainConfig, "test")
    values = training("students", runs)
    values["text_distillation"]["text_encoder"] = {**values["text_distillation"]["text_encoder"], "width": 32}
    task = TrainTextDistillation(parse(values, TrainConfig, "test"))
    with pytest.raises(UserError, match="token vectors"):
        task.start_from(runs / "clip")
