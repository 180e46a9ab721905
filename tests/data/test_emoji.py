"""The builder, without a network: npm is replaced by a script that packs a tiny package."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mindpangu.data import manifest
from mindpangu.data.emoji import build, hash_fraction, heldout_style
from mindpangu.data.sources import NAMES_PACKAGE, STYLES, plain_code, render_svg
from mindpangu.errors import UserError

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10"><rect width="20" height="10" fill="red"/></svg>'


def packed(files: dict[str, bytes]) -> bytes:
    """An npm package."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return buffer.getvalue()


def names_package() -> bytes:
    def entry(code, label):
        return {"hexcode": code, "label": label, "tags": [label], "group": 3, "subgroup": 1}

    en = [entry("1F98A", "fox"), entry("1F34E", "red apple"), {**entry("1F1E6", "flag"), "group": 9}]
    zh = [entry("1F98A", "狐狸"), entry("1F34E", "红苹果"), entry("1F1E6", "旗")]
    meta = {"groups": {"3": "animals-nature"}, "subgroups": {"1": "animal-mammal"}}
    return packed(
        {
            "en/data.json": json.dumps(en).encode(),
            "zh/data.json": json.dumps(zh).encode(),
            "meta/groups.json": json.dumps(meta).encode(),
        }
    )


def webp(colour) -> bytes:
    buffer = BytesIO()
    Image.new("RGBA", (256, 256), colour).save(buffer, format="WEBP")
    return buffer.getvalue()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder of packages that a stand-in `npm pack` copies from; returns {package name: bytes} to fill."""
    shelf, bin_folder = tmp_path / "shelf", tmp_path / "bin"
    shelf.mkdir()
    bin_folder.mkdir()
    npm = bin_folder / "npm"
    npm.write_text(
        "#!/bin/sh\n"
        f'name=$(echo "$2" | tr "/@" "__")\n'
        f'[ -f "{shelf}/$name" ] || {{ echo "E404 $2 not found" >&2; exit 1; }}\n'
        f'cp "{shelf}/$name" package.tgz && echo package.tgz\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")

    def put(package: str, content: bytes) -> None:
        (shelf / package.replace("/", "_").replace("@", "_")).write_bytes(content)

    put(NAMES_PACKAGE, names_package())
    icons = {"icons": {"fox": {"body": SVG}, "apple": {"body": "<broken"}}, "width": 20, "height": 10}
    chars = {"1f98a": "fox", "1f34e": "apple"}
    put(
        STYLES["noto"].package,
        packed({"icons.json": json.dumps(icons).encode(), "chars.json": json.dumps(chars).encode()}),
    )
    put(STYLES["fluent_3d"].package, packed({"assets/1f98a.webp": webp("red"), "assets/1f34e.webp": webp("green")}))
    return put


def test_builds_what_is_there_and_says_what_is_missing(registry, tmp_path):
    pytest.importorskip("resvg_py")
    report = build(tmp_path / "out", ("noto", "fluent_3d", "twemoji"), size=64)
    assert report.pictures == Counter({"noto": 1, "fluent_3d": 2})
    missing = "\n".join(report.missing)
    assert "style twemoji: npm could not fetch @twemoji/svg" in missing
    assert "noto/1f34e.png: unreadable" in missing
    assert (tmp_path / "out" / "missing.txt").read_text(encoding="utf-8").strip() == missing
    records = manifest.read(tmp_path / "out")
    assert {(r.concept, r.style) for r in records} == {
        ("1f98a", "noto"),
        ("1f98a", "fluent_3d"),
        ("1f34e", "fluent_3d"),
    }
    fox = records[0]
    assert (fox.name["zh"], fox.group, fox.licence) == ("狐狸", "animals-nature", "Apache-2.0")
    with Image.open(tmp_path / "out" / fox.file) as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGBA")


def test_a_truncated_package_is_named_and_the_rest_is_built(registry, tmp_path):
    registry(STYLES["noto"].package, packed({"icons.json": b"{}"})[:40])
    report = build(tmp_path / "out", ("noto", "fluent_3d"), size=32)
    assert report.pictures == Counter({"fluent_3d": 2})
    assert any("truncated" in line for line in report.missing)


def test_a_second_run_completes_a_first(registry, tmp_path):
    build(tmp_path / "out", ("fluent_3d",), size=32)
    kept = tmp_path / "out" / "fluent_3d" / "1f98a.png"
    stamp = kept.stat().st_mtime_ns
    (tmp_path / "out" / "fluent_3d" / "1f34e.png").write_bytes(b"half")
    assert build(tmp_path / "out", ("fluent_3d",), size=32).pictures == Counter({"fluent_3d": 2})
    assert kept.stat().st_mtime_ns == stamp


def test_without_npm_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is not installed"):
        build(tmp_path / "out", ("noto",))


def test_an_unknown_style(tmp_path):
    with pytest.raises(UserError, match="allowed: noto, fluent_flat"):
        build(tmp_path / "out", ("apple",))


@given(st.text("0123456789abcdef", min_size=4, max_size=6), st.integers(2, 6))
def test_a_concept_loses_at_most_one_style(code, count):
    styles = [f"s{i}" for i in range(count)]
    assert heldout_style(code, styles) in ("", *styles)
    assert heldout_style(code, styles) == heldout_style(code, styles[::-1])
    assert heldout_style(code, styles[:1]) == ""


def test_a_tenth_of_all_pairs_is_held_out():
    styles = list(STYLES)
    held = sum(bool(heldout_style(f"{i:x}", styles)) for i in range(3000))
    assert held / (3000 * len(styles)) == pytest.approx(0.1, abs=0.01)


def test_hash_fraction_is_the_same_everywhere():
    assert hash_fraction("heldout:1f98a") == 0.5814996054544848


def test_codes_lose_their_variation_selectors():
    assert plain_code("2764-FE0F-200D-1F525") == "2764-200d-1f525"


def test_art_that_is_not_square_is_centred():
    pytest.importorskip("resvg_py")
    picture = render_svg(SVG, 40)
    assert picture.size == (40, 40)
    assert picture.getpixel((20, 2))[3] == 0
    assert picture.getpixel((20, 20)) == (255, 0, 0, 255)


def test_a_damaged_manifest_line_is_numbered(tmp_path):
    (tmp_path / "manifest.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.jsonl:1"):
        manifest.read(tmp_path)


def test_no_data_says_how_to_build_it(tmp_path):
    with pytest.raises(UserError, match="mindpangu data emoji --out"):
        manifest.read(tmp_path)
