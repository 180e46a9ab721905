"""From shards to encoded data, and a generator's training on it."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mindpangu import runtime
from mindpangu.checkpoint.store import claimed, file_digest, load_tensors, read_card
from mindpangu.config import parse
from mindpangu.data import pack
from mindpangu.data.examples import DataConfig, Examples
from mindpangu.data.shards import Shard, find, write
from mindpangu.errors import UserError
from mindpangu.images import to_model
from mindpangu.spec import TEXT_ENCODERS
from mindpangu.train.config import TrainConfig
from tests.tiny import SAMPLE, STYLES, training
from tests.train.test_loop import states

SIZES = ("32x32", "48x32")
BROKEN = {"broken": {"png": b"no picture", "txt": b"a fox"}, "silent": {"png": b""}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of seven scenes each, and two samples that cannot be used."""
    folder = tmp_path_factory.mktemp("shards")
    examples = Examples(DataConfig(SAMPLE, tuple(STYLES), sizes=SIZES, size_weights=(0.6, 0.4)))
    pack.pack(pack.scenes(examples, 14), folder, 7, lambda count: None)
    write(folder / "00002.tar", list(BROKEN.items()))
    return folder


def encoding(runs, **changes):
    from mindpangu.train.encode import EncodeConfig

    # The parts of a model lie in one folder; the fixture's in two.
    values = {"vae": runs / "vae", "text": runs / "clip", "sizes": SIZES, "size_dim": 8, "used": SIZES}
    return EncodeConfig(**{**values, "max_bad_share": 0.2, **changes})


@pytest.fixture(scope="module")
def encoded(runs, shards, tmp_path_factory):
    from mindpangu.train.encode import encode

    runtime.start("CPU")
    out = tmp_path_factory.mktemp("encoded")
    totals = encode(find(str(shards / "*.tar")), encoding(runs), out, lambda count: None)
    assert totals == {"used": 14, "small": 0, "bad": 2}
    return out


def test_what_is_bad_is_listed(encoded):
    listed = [json.loads(line) for line in (encoded / "bad.jsonl").read_text().splitlines()]
    assert {(one["sample"].rpartition("/")[2], one["reason"].split(" (")[0]) for one in listed} == {
        ("broken", "the picture: not a readable picture; JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF are read"),
        ("silent", "no caption"),
    }


def test_latents_and_features_are_those_of_the_parts(runs, shards, encoded):
    from mindspore import Tensor, mutable

    from mindpangu.models.loading import load_conditioner, load_tokenizers, load_vae

    vae = load_vae(runs / "vae" / "vae.safetensors")
    conditioner, tokenizers = (
        load_conditioner(runs / "clip", TEXT_ENCODERS, 8),
        load_tokenizers(runs / "clip", TEXT_ENCODERS),
    )
    shard, tensors = Shard(shards / "00001.tar"), load_tensors(encoded / "00001.safetensors")
    seen = dict.fromkeys(SIZES, 0)
    for entry in shard.entries:
        sample = shard.read(entry)
        size = f"{sample.picture.width}x{sample.picture.height}"
        row = seen[size]
        seen[size] += 1
        latents = vae.encode(Tensor(to_model([np.asarray(sample.picture)]))).asnumpy()[0]
        np.testing.assert_allclose(tensors[f"{size}.latents"][row], latents, atol=2e-3 * np.abs(latents).max())
        first, end = tensors[f"{size}.first"][row : row + 2]
        assert end - first == len(sample.captions) == 2
        ids = tuple(Tensor(tokenizer(list(sample.captions))) for tokenizer in tokenizers)
        told = conditioner(mutable(ids), Tensor(np.full((2, 1), SIZES.index(size), np.float32)))
        for name, one in zip(("context", "vector"), told):
            wanted = one.asnumpy()
            scale = np.abs(wanted).max()
            np.testing.assert_allclose(tensors[f"{size}.{name}"][first:end], wanted, atol=2e-3 * scale)
    assert sum(seen.values()) == 7


def test_a_second_run_makes_only_what_is_missing_or_of_another_encoder(runs, shards, encoded, tmp_path):
    from mindpangu.train.encode import encode

    found = find(str(shards / "*.tar"))
    times = {path.name: path.stat().st_mtime_ns for path in encoded.glob("0*.safetensors")}
    damaged = encoded / "00001.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    encode(found, encoding(runs), encoded, lambda count: None)
    changed = {p.name for p in encoded.glob("0*.safetensors") if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {"00001.safetensors"}
    assert damaged.read_bytes() == whole
    copy = tmp_path / "copy"
    shutil.copytree(encoded, copy)
    before = read_card(copy / "00001.safetensors")["key"]
    encode(found, encoding(runs, used=SIZES[:1]), copy, lambda count: None)
    assert read_card(copy / "00001.safetensors")["key"] == {**before, "used": [SIZES[0]]}
    assert not [name for name in load_tensors(copy / "00001.safetensors") if name.startswith(SIZES[1])]


def test_what_is_there_is_not_read_again_unless_it_was_touched(runs, shards, encoded, tmp_path, monkeypatch):
    from mindpangu.train import encode as encoding_of

    there = tmp_path / "shards"
    shutil.copytree(shards, there)
    found, out = find(str(there / "*.tar")), tmp_path / "encoded"
    shutil.copytree(encoded, out)
    hashed = []
    monkeypatch.setattr(encoding_of, "file_digest", lambda path: hashed.append(path.name) or file_digest(path))
    monkeypatch.setattr(encoding_of.Encoder, "shard", None)  # nothing is encoded
    encoding_of.encode(found, encoding(runs), out, lambda count: None)
    assert not [name for name in hashed if name.endswith(".tar")]  # copytree keeps times
    (there / "00001.tar").touch()
    encoding_of.encode(found, encoding(runs), out, lambda count: None)
    assert [name for name in hashed if name.endswith(".tar")] == ["00001.tar"]


def test_what_another_process_is_encoding_is_waited_for_and_made_where_it_was_lost(runs, shards, encoded, tmp_path):
    from mindpangu.train.encode import encode

    held, at_work, lost = tmp_path / "00000.safetensors", Event(), Event()

    def other():
        with claimed(held) as mine:
            assert mine
            at_work.set()
            lost.wait()

    thread = Thread(target=other)
    thread.start()
    at_work.wait()
    done = []

    def progress(count):
        done.append(sorted(path.name for path in tmp_path.glob("0*.safetensors")))
        if len(done) == 2:  # all but the one that is held
            lost.set()

    encode(find(str(shards / "*.tar")), encoding(runs), tmp_path, progress)
    thread.join()
    assert done[1] == ["00001.safetensors", "00002.safetensors"]
    for name in ("00000", "00001", "empty"):
        whole, again = (load_tensors(folder / f"{name}.safetensors") for folder in (encoded, tmp_path))
        for key in whole:
            np.testing.assert_array_equal(again[key], whole[key], err_msg=key)
    assert not list(tmp_path.glob(".*.lock"))


def test_one_process_at_a_time_makes_a_file(tmp_path):
    path = tmp_path / "made" / "file"
    with claimed(path) as mine, claimed(path) as second:
        assert mine and not second
    with pytest.raises(RuntimeError, match="lost"), claimed(path) as mine:
        raise RuntimeError("lost")
    with claimed(path) as mine:
        assert mine


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_bad_share": 0.1}, r"2 of 16 samples cannot be used \(12.5%; allowed: 10.0%\)"),
        ({"used": ("64x64",)}, "size 64x64 is not one of the model's"),
    ],
)
def test_what_cannot_be_encoded_is_one_line(runs, shards, tmp_path, changes, words):
    from mindpangu.train.encode import encode

    with pytest.raises(UserError, match=words):
        encode(find(str(shards / "*.tar")), encoding(runs, **changes), tmp_path, lambda count: None)


def generator(runs, encoded, folder, **changes):
    values = training("structure", runs, output_dir=str(folder), **changes)
    del values["data"], values["diffusion"]["scenes"]
    values["diffusion"].update(encoded=str(encoded), sizes=list(SIZES), size_dim=8)
    return parse(values, TrainConfig, "test")


def test_small_pictures_are_left_out(runs, shards, tmp_path):
    from mindpangu.train.encode import encode

    totals = encode(find(str(shards / "00000.tar")), encoding(runs, min_side=33), tmp_path, lambda count: None)
    assert totals == {"used": 0, "small": 7, "bad": 0}
    from mindpangu.train.run import make_task

    with pytest.raises(UserError, match="no pictures of the sizes"):
        make_task(generator(runs, tmp_path, tmp_path / "run"))


def test_a_generator_trains_on_it_and_a_resumed_run_is_bit_equal(runs, encoded, tmp_path):
    import mindspore

    from mindpangu.train.loop import fit
    from mindpangu.train.run import make_task

    finals = []
    for name, stops in (("whole", (None,)), ("broken", (8, None))):
        for until in stops:
            config = generator(runs, encoded, tmp_path / name)
            mindspore.set_seed(3)
            fit(make_task(config), config, until)
        finals.append(load_tensors(states(tmp_path / name)[0]))
        assert (tmp_path / name / "unet.safetensors").exists()
        assert (tmp_path / name / "samples-00000016.png").exists()
    for key in finals[0].keys() - {"progress"}:
        np.testing.assert_array_equal(finals[0][key], finals[1][key], err_msg=key)


def test_the_loss_is_that_of_the_words_themselves(runs, encoded, tmp_path):
    """Features from the file against text encoders in the graph, for the same captions."""
    from mindspore import Tensor

    from mindpangu.models.loading import load_conditioner, load_tokenizers
    from mindpangu.train.diffusion import DiffusionLoss
    from mindpangu.train.run import make_task

    task = make_task(generator(runs, encoded, tmp_path / "run", diffusion={"caption_dropout": 1.0}))
    *noisy, context, vector = task.batch(0, 4)
    size, _ = task.epochs[0].batch(0)
    told = load_tokenizers(runs / "clip", TEXT_ENCODERS)
    words = DiffusionLoss(task.loss_net.unet, load_conditioner(runs / "clip", TEXT_ENCODERS, 8), "v")
    ids = [tokenizer([""] * 4) for tokenizer in told]
    index = np.full((4, 1), SIZES.index(size), np.float32)
    from_file = task.loss_net(*map(Tensor, (*noisy, context, vector))).asnumpy()
    from_words = words(*map(Tensor, (*noisy, *ids, index))).asnumpy()
    np.testing.assert_allclose(from_file, from_words, rtol=1e-3)


def test_without_features_the_text_encoders_run_in_training(runs, shards, encoded, tmp_path):
    """Captions as ids alone: a fraction of the bytes, and the same loss."""
    from mindspore import Tensor

    from mindpangu.train.encode import encode
    from mindpangu.train.run import make_task

    small = tmp_path / "small"
    encode(find(str(shards / "*.tar")), encoding(runs, features=False), small, lambda count: None)
    one, other = (load_tensors(folder / "00000.safetensors") for folder in (encoded, small))
    assert one.keys() - other.keys() == {f"{size}.{name}" for size in SIZES for name in ("context", "vector")}
    for name in other:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    losses = []
    for folder in (encoded, small):
        task = make_task(generator(runs, folder, tmp_path / "run"))
        weights = {
            p.name: np.random.default_rng(len(p.name)).normal(0, 0.1, p.shape)
            for p in task.loss_net.unet.get_parameters()
        }
        for p in task.loss_net.unet.get_parameters():
            p.set_data(Tensor(weights[p.name].astype(np.float32)))
        losses.append(task.loss_net(*map(Tensor, task.batch(0, 4))).asnumpy())
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


def test_a_row_of_a_batch_is_found_in_its_file(runs, encoded, tmp_path):
    from mindpangu.train.run import make_task

    task = make_task(generator(runs, encoded, tmp_path / "run"))
    for nimg in (0, 4):
        latents = task.batch(nimg, 4)[0]
        for row in range(4):
            path, size, place = re.fullmatch(r"(.*): (\w+)\.latents\[(\d+)\]", task.source(nimg, 4, row)).groups()
            np.testing.assert_array_equal(load_tensors(Path(path))[f"{size}.latents"][int(place)], latents[row])


def test_data_of_another_encoder_is_refused(runs, encoded, tmp_path):
    from mindpangu.train.run import make_task

    values = generator(runs, encoded, tmp_path)
    other = training("structure", runs, output_dir=str(tmp_path))
    del other["data"], other["diffusion"]["scenes"]
    other["diffusion"].update(encoded=str(encoded), sizes=[*SIZES, "64x64"], size_dim=8)
    assert values.diffusion.encoded == encoded
    with pytest.raises(UserError, match="encoded by other models"):
        make_task(parse(other, TrainConfig, "test"))
    with pytest.raises(UserError, match="no encoded data; make it with"):
        make_task(generator(runs, tmp_path, tmp_path))


@settings(max_examples=50, deadline=None)
@given(
    counts=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 40), min_size=1),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_an_epoch_shows_every_picture_and_batches_are_of_one_size(counts, batch_size, seed):
    from mindpangu.train.encoded import Epochs

    epochs = Epochs(counts, batch_size, seed)
    for epoch in range(2):
        seen = {size: [] for size in counts}
        for number in range(epoch * epochs.length, (epoch + 1) * epochs.length):
            size, rows = epochs.batch(number)
            assert len(rows) == batch_size
            seen[size] += rows.tolist()
            shares = [epochs.batch(number, slice(i, i + 1))[1] for i in range(batch_size)]
            np.testing.assert_array_equal(np.concatenate(shares), rows)
        for size, rows in seen.items():
            assert set(rows) == set(range(counts[size]))
            assert len(rows) - counts[size] < batch_size * epochs.run[size]
    again = Epochs(counts, batch_size, seed).batch(epochs.length)
    np.testing.assert_array_equal(again[1], epochs.batch(epochs.length)[1])


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 3000), key=st.integers(0, 99))
def test_a_computed_shuffle_is_a_permutation(count, key):
    from mindpangu.train.encoded import shuffled

    places = shuffled(np.arange(count), count, [key])
    assert sorted(places) == list(range(count))
    some = np.arange(count)[:: max(1, count // 7)]
    np.testing.assert_array_equal(shuffled(some, count, [key]), places[some])


def test_a_shuffle_mixes_as_well_as_a_drawn_one():
    """Neighbours do not stay near one another, and two keys agree on as few places as chance has it (1 expected)."""
    from mindpangu.train.encoded import shuffled

    count = 10007
    one, other = (shuffled(np.arange(count), count, [key]) for key in (1, 2))
    assert (one == other).sum() < 10
    distances = np.abs(np.diff(one)) / count
    assert abs(distances.mean() - 1 / 3) < 0.02  # of two uniform places
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.05


def test_a_hundred_million_pictures_are_planned_in_little_memory_whatever_the_number_of_processes():
    """Ten sizes, a batch of 1,024: a process of 256 plans its four rows."""
    import tracemalloc

    from mindpangu.train.encoded import RUN, Epochs

    tracemalloc.start()
    epochs = Epochs({str(i): 10_000_000 for i in range(10)}, 1024, 0)
    seen = [epochs.batch(number, slice(4, 8)) for number in range(2000)]
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    rows = {}
    for size, batch in seen:
        rows.setdefault(size, []).append(batch)
    for batches in rows.values():
        steps = np.diff(np.stack(batches)[:, 0])
        assert (steps == 1).mean() > 1 - 2 / RUN  # a row goes on where it was


def test_a_mindrecord_file_is_encoded_as_the_tar_of_the_same_samples(runs, encoded, tmp_path):
    from mindpangu.train.encode import encode

    examples = Examples(DataConfig(SAMPLE, tuple(STYLES), sizes=SIZES, size_weights=(0.6, 0.4)))
    pack.pack(pack.scenes(examples, 7), tmp_path / "records", 7, lambda count: None, "mindrecord")
    out = tmp_path / "encoded"
    found = find(str(tmp_path / "records" / "*.mindrecord"))
    assert encode(found, encoding(runs), out, lambda count: None) == {"used": 7, "small": 0, "bad": 0}
    one, other = load_tensors(encoded / "00000.safetensors"), load_tensors(out / "00000.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_what_a_shard_holds_is_in_the_key_and_other_files_are_not_read(runs, encoded, tmp_path):
    from mindpangu.train.encode import encode
    from mindpangu.train.encoded import EncodedData, encoder_key

    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")

    def encode_captions(captions):
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        for number, caption in enumerate(captions):
            write(
                tmp_path / "shards" / f"0000{number}.tar", [("a", {"png": picture.getvalue(), "txt": caption.encode()})]
            )
        encode(find(str(tmp_path / "shards" / "*.tar")), encoding(runs), tmp_path / "out", lambda count: None)
        (key,) = [k for k in load_tensors(tmp_path / "out" / "00000.safetensors") if k.endswith("ids.text_encoder_2")]
        return load_tensors(tmp_path / "out" / "00000.safetensors")[key]

    first = encode_captions(["a red fox", "a blue bus"])
    assert not np.array_equal(first, encode_captions(["a green hat"]))
    assert (tmp_path / "out" / "00001.safetensors").exists()  # of the earlier, larger run
    key = encoder_key(runs / "vae", runs / "clip", SIZES, 8)
    data = EncodedData(tmp_path / "out", key, tuple(SIZES))
    assert sum(data.counts.values()) == 1
