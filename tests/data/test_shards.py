"""Tar shards: what is written is read, in any order; what is broken is left out and listed, never fatal."""

from __future__ import annotations

import io
import json
import random
import tarfile

import pytest
from PIL import Image

from mindpangu.data.shards import BadSampleError, Shard, check_share, find, write
from mindpangu.errors import UserError


def png(size=(9, 7), mode="RGB", colour="red", kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, kind)
    return file.getvalue()


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.tar"
    samples = [
        ("000/one", {"png": png(), "en.txt": b"a fox\n", "zh.txt": "一只狐狸".encode()}),
        ("000/two", {"jpg": png(kind="JPEG"), "json": json.dumps({"caption": "a tree", "more": 1}).encode()}),
        ("000/clear", {"webp": png((4, 4), "RGBA", (0, 0, 0, 0), "WEBP"), "txt": b"nothing"}),
    ]
    write(path, samples)
    shard = Shard(path)
    assert [entry.key for entry in shard.entries] == ["000/one", "000/two", "000/clear"]
    assert shard.bad == []
    clear, two, one = (shard.read(entry) for entry in reversed(shard.entries))
    assert one.captions == ("a fox", "一只狐狸")
    assert one.picture.size == (9, 7)
    assert one.picture.getpixel((0, 0)) == (255, 0, 0)
    assert two.captions == ("a tree",)
    assert clear.picture.getpixel((0, 0)) == (255, 255, 255)


def bomb() -> bytes:
    """A PNG that says it is enormous."""
    content = bytearray(png((8, 8)))
    content[16:24] = (60000).to_bytes(4, "big") * 2
    return bytes(content)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"png": png()[:40], "txt": b"a"}, "not a readable picture"),
        ({"png": b"", "txt": b"a"}, "not a readable picture"),
        ({"jpg": png(kind="PPM"), "txt": b"a"}, "not a readable picture"),
        ({"png": bomb(), "txt": b"a"}, "not a readable picture"),
        ({"png": png(), "txt": b"\xd2\xd6"}, "not UTF-8"),
        ({"png": png(), "txt": "\ufeff".encode("utf-16-le")}, "no caption in it"),
        ({"png": png(), "json": b'{"caption": "\\ud800"}'}, "half a character"),
        ({"png": png(), "txt": b"  \n"}, "no caption in it"),
        ({"png": png(), "txt": b"a" * 70000}, "at most 65536"),
        ({"png": png(), "json": b'{"caption": 3}'}, "no caption in it"),
        ({"png": png(), "json": b"[" * 20000}, "not JSON"),
        ({"png": png()}, "no caption"),
        ({"txt": b"a"}, "no picture"),
        ({"mp4": b"a", "txt": b"a"}, "no picture"),
    ],
)
def test_a_bad_sample_says_why(tmp_path, fields, reason):
    write(tmp_path / "a.tar", [("good", {"png": png(), "txt": b"a"}), ("bad", fields)])
    shard, found = Shard(tmp_path / "a.tar"), []
    for entry in shard.entries:
        try:
            shard.read(entry)
        except BadSampleError as error:
            found.append(str(error))
    found += [bad.reason for bad in shard.bad]
    assert len(found) == 1
    assert reason in found[0]


def special(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for field, content in (("png", png()), ("txt", b"a")):
            member = tarfile.TarInfo(f"{name}.{field}")
            member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (special("../out"), "leaves the archive"),
        (special("/root/out"), "leaves the archive"),
        (special("a/../../b"), "leaves the archive"),
        (special("link", tarfile.SYMTYPE), "not a plain"),
        (special("device", tarfile.CHRTYPE), "not a plain"),
        (special("whole")[:700], "not a whole"),
        (special("whole")[:512] + b"\1" * 4096, "not a whole"),
        (b"", "not a whole"),
        (b"\x1f\x8b" + b"x" * 2000, "not a whole"),
    ],
)
def test_an_archive_is_never_trusted(tmp_path, content, reason):
    (tmp_path / "a.tar").write_bytes(content)
    shard = Shard(tmp_path / "a.tar")
    assert shard.entries == []
    assert any(reason in bad.reason for bad in shard.bad), shard.bad


def test_a_thousand_malformed_samples_none_fatal(tmp_path):
    """Good samples with bytes changed, cut and moved anywhere in the archive."""
    random.seed(0)
    good = [(f"{i:03}", {"png": png((16, 16)), "en.txt": b"a fox", "zh.txt": "狐狸".encode()}) for i in range(10)]
    write(tmp_path / "good.tar", good)
    whole, read, bad = (tmp_path / "good.tar").read_bytes(), 0, 0
    for number in range(100):
        content = bytearray(whole)
        for _ in range(10):
            at = random.randrange(len(content))
            action = random.randrange(4)
            if action == 0:
                content[at] ^= 1 << random.randrange(8)
            elif action == 1:
                content[at : at + 64] = random.randbytes(64)
            elif action == 2:
                del content[at : at + random.randrange(1, 1024)]
            else:
                content[at:at] = random.randbytes(random.randrange(1, 600))
        path = tmp_path / f"{number}.tar"
        path.write_bytes(content)
        shard = Shard(path)
        bad += len(shard.bad)
        for entry in shard.entries:
            try:
                shard.read(entry)
                read += 1
            except BadSampleError:
                bad += 1
    assert bad > 100
    assert read > 0


def test_too_many_bad_ones_are_an_error(tmp_path):
    check_share(19, 1, 0.1, tmp_path)
    with pytest.raises(UserError, match=r"3 of 22 samples cannot be used \(13.6%; allowed: 10.0%\)"):
        check_share(19, 3, 0.1, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        find(str(tmp_path / "*.gz"))
