"""MindRecord shards: what tar shards hold, and bad rows listed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mindpangu.data import records, shards
from mindpangu.data.records import Records, opened
from mindpangu.data.shards import BadSampleError, Shard
from mindpangu.errors import UserError


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(file, "PNG")
    return file.getvalue()


SAMPLES = [
    ("one", {"png": png("red"), "en.txt": b"a red thing", "zh.txt": "红色的东西".encode()}),
    ("two", {"png": png("blue"), "txt": b" blue "}),
    ("silent", {"png": png("green")}),
    ("broken", {"png": b"no picture at all", "txt": b"text"}),
    ("both", {"png": png("gray"), "json": '{"caption_en": "gray", "caption_zh": "灰色"}'.encode()}),
    ("last", {"png": png("white"), "txt": b"white"}),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "a.mindrecord"
    records.write(path, SAMPLES)
    assert {other.name for other in path.parent.iterdir()} == {"a.mindrecord", "a.mindrecord.db"}
    return path


def test_both_formats_hold_the_same(path, tmp_path):
    shards.write(tmp_path / "a.tar", SAMPLES)
    found = []
    for shard in (opened(tmp_path / "a.tar"), opened(path)):
        samples = {}
        for entry in shard.entries:
            try:
                sample = shard.read(entry)
                samples[entry.key] = np.asarray(sample.picture).tolist(), sample.captions
            except BadSampleError as error:
                samples[entry.key] = str(error).split(" (")[0]
        found.append((samples, {bad.sample.split("/")[1]: bad.reason for bad in shard.bad}))
    assert found[0] == found[1]
    assert found[1][1] == {"silent": "no caption"}
    assert found[1][0]["one"][1] == ("a red thing", "红色的东西")
    assert found[1][0]["both"][1] == ("gray", "灰色")
    assert isinstance(opened(path), Records) and isinstance(opened(tmp_path / "a.tar"), Shard)


def test_rows_may_be_read_in_any_order(path):
    shard = Records(path)
    keys = {"one": "a red thing", "two": "blue", "last": "white"}
    entries = {entry.key: entry for entry in shard.entries}
    for key in ("last", "one", "two", "two", "last", "one"):
        assert shard.read(entries[key]).captions[0] == keys[key]


def test_what_is_no_file_and_what_is_a_broken_one(path, tmp_path):
    with pytest.raises(UserError, match="sample blind has no picture"):
        records.write(tmp_path / "b.mindrecord", [("blind", {"txt": b"nothing to see"})])
    with pytest.raises(UserError, match=r"sample odd: \.txt: not UTF-8"):
        records.write(tmp_path / "b.mindrecord", [("odd", {"png": png("red"), "txt": b"\xff"})])
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"none.mindrecord: no such file"):
        Records(tmp_path / "none.mindrecord")
    damaged = tmp_path / "a.mindrecord"
    damaged.write_bytes(path.read_bytes()[:1000])
    shard = Records(damaged)
    assert not shard.entries
    assert shard.bad[0].reason.startswith("not a whole MindRecord file")
