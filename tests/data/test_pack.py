"""Packing: what one has becomes shards that are read back."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mindpangu.checkpoint.store import claimed
from mindpangu.cli.data import pack
from mindpangu.data import pack as packing
from mindpangu.data.examples import DataConfig, Examples
from mindpangu.data.shards import Shard
from mindpangu.errors import UserError
from tests.tiny import SAMPLE

OPTIONS = {
    "per_shard": 2,
    "scenes": 5,
    "size": ["48x32"],
    "group": [],
    "compositions": 0.3,
    "caption": "",
    "form": "tar",
}


def test_scenes_with_captions_in_both_languages(tmp_path):
    pack(SAMPLE, tmp_path / "out", **OPTIONS)
    paths = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name for path in paths] == ["00000.tar", "00001.tar", "00002.tar"]
    samples = [shard.read(entry) for shard in map(Shard, paths) for entry in shard.entries]
    examples = Examples(DataConfig(SAMPLE, sizes=("48x32",), compositions=0.3))
    assert len(samples) == 5
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(np.asarray(sample.picture), examples.image(examples.scene(i)))
        assert sample.captions == tuple(examples.caption(examples.scene(i), i, x) for x in ("en", "zh"))


def test_ones_own_pictures_as_they_are(tmp_path, capsys):
    folder = tmp_path / "own"
    (folder / "deep").mkdir(parents=True)
    for name in ("one.png", "deep/two.JPG", "silent.png"):
        Image.new("RGB", (5, 4), "blue").save(folder / name)
    (folder / "one.txt").write_text("a blue thing")
    (folder / "deep" / "two.zh.txt").write_text("蓝色的东西", encoding="utf-8")
    pack(folder, tmp_path / "out", **OPTIONS)
    shard = Shard(tmp_path / "out" / "00000.tar")
    assert {shard.read(entry).captions for entry in shard.entries} == {("a blue thing",), ("蓝色的东西",)}
    assert "1 pictures have no caption beside them" in capsys.readouterr().out
    (folder / "one.txt").unlink()
    (folder / "deep" / "two.zh.txt").unlink()
    with pytest.raises(UserError, match="3 pictures, none with a caption"):
        pack(folder, tmp_path / "other", **OPTIONS)


def test_captions_are_found_in_any_case_and_what_is_not_read_is_named(tmp_path):
    for name in ("a.PNG", "b.bmp", "c.jfif", "d.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "JPEG" if name.endswith("jfif") else None)
    (tmp_path / "A.TXT").write_bytes(b"\xef\xbb\xbfa red thing\r\n")
    (tmp_path / "b.caption").write_text("of kohya's")
    (tmp_path / "c.en.txt").write_text("in English")
    for name in ("e.heic", "f.svg", "._d.png", "._d.txt"):
        (tmp_path / name).write_bytes(b"0")
    found = packing.Captioned(tmp_path)
    assert {(item.stamp.split()[0].rpartition("/")[2], *sorted(item.fields())) for item in found} == {
        ("a.PNG", "png", "txt"), ("b.bmp", "bmp", "txt"), ("c.jfif", "en.txt", "jfif"),
    }  # fmt: skip
    assert (found.silent, found.an_example.name, dict(found.unread)) == (1, "d.png", {"heic": 1, "svg": 1})
    packing.pack(packing.Captioned(tmp_path), tmp_path / "out", 2, lambda count: None)
    shard = Shard(tmp_path / "out" / "00000.tar")
    assert [shard.read(entry).captions for entry in shard.entries] == [("a red thing",), ("of kohya's",)]
    assert [path.name for path in packing.left_over(tmp_path / "out", 1, "tar")] == ["00001.tar"]


def test_a_second_run_writes_only_what_is_missing_or_changed(tmp_path, monkeypatch):
    folder, out = tmp_path / "own", tmp_path / "out"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (4, 4), (40 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"thing {i}")
    written, write = [], packing.FORMATS["tar"]
    monkeypatch.setitem(packing.FORMATS, "tar", lambda path, part: written.append(path.name) or write(path, part))

    def run():
        written.clear()
        assert packing.pack(packing.Captioned(folder), out, 2, lambda count: None) == (3, 6)
        return sorted(written)

    assert run() == ["00000.tar", "00001.tar", "00002.tar"]
    assert run() == []
    (out / "00001.tar").unlink()
    assert run() == ["00001.tar"]
    (folder / "5.txt").write_text("another thing")
    assert run() == ["00002.tar"]
    with claimed(out / "00000.tar") as mine:  # what another process is writing is waited for
        assert mine
        assert run() == []  # it is whole: nobody has to wait


def test_a_large_folder_is_packed_in_little_memory(tmp_path, monkeypatch):
    """Only the items of a shard and the names of a folder are there at a time."""
    for i in range(20):
        (tmp_path / "own" / f"{i:02}").mkdir(parents=True)
        for j in range(100):
            (tmp_path / "own" / f"{i:02}" / f"{j}.png").write_bytes(b"x")
    most, there = 0, set()

    class Watched(packing.Item):
        def __init__(self, *args):
            nonlocal most
            super().__init__(*args)
            there.add(id(self))
            most = max(most, len(there))

        def __del__(self):
            there.discard(id(self))

    monkeypatch.setattr(packing, "Item", Watched)
    items = packing.Captioned(tmp_path / "own", "a thing")
    assert packing.pack(items, tmp_path / "out", 50, lambda count: None) == (40, 2000)
    assert most <= 2 * 50 + 1
