"""A folder's page: every picture is on it, and no prompt gets out of its place."""

from __future__ import annotations

import json
import re
import time
from urllib.parse import unquote

import pytest
from PIL import Image, PngImagePlugin

from mindpangu.errors import UserError
from mindpangu.infer.drawing import Drawing
from mindpangu.infer.gallery import page
from mindpangu.infer.image_file import save_drawing


def test_every_picture_is_there_with_what_it_carries(tmp_path):
    prompts = ["a fox </script><script>alert(1)</script>", "一只狐狸 & 'more'", "<!-- "]
    for i, prompt in enumerate(prompts):
        settings = {"prompt": prompt, "seed": i, "model": "tiny", "digest": "abc", "version": "0"}
        (tmp_path / "a b").mkdir(exist_ok=True)
        save_drawing(Drawing(Image.new("RGB", (8, 8)), prompt, settings, None), tmp_path / "a b" / f"{i}#.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.jpg")
    counted = []
    text = page(tmp_path, counted.append)
    assert text.count("</script>") == 2  # the page's own
    entries = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])
    assert len(entries) == len(counted) == 5
    assert [one["settings"].get("prompt") for one in entries] == [*prompts, None, None]
    for one in entries:
        assert (tmp_path / unquote(one["url"])).is_file()
        assert "#" not in one["url"]
    assert "http" not in text


def test_an_empty_folder_has_no_page(tmp_path):
    with pytest.raises(UserError, match="no pictures"):
        page(tmp_path, lambda count: None)


def test_ten_thousand_pictures_are_searched_in_a_browser(chromium, tmp_path):
    """From the disk, without a server; how long it takes is printed (pytest -s)."""
    things = ["fox", "apple", "bus", "狐狸", "苹果", "tulip", "dog", "penguin", "企鹅", "hamburger"]
    for i in range(10_000):
        prompt = f"{things[i % 10]}, picture {i}"
        settings = {"prompt": prompt, "seed": i, "model": "tiny", "digest": "abc", "version": "0"}
        color = (i % 251, i % 241, i % 239)
        save_drawing(Drawing(Image.new("RGB", (8, 8), color), prompt, settings, None), tmp_path / f"{i:05}.png")
    (tmp_path / "index.html").write_text(page(tmp_path, lambda count: None), encoding="utf-8")
    context = chromium.new_context()
    browsed, asked = context.new_page(), []
    browsed.on("request", lambda one: asked.append(one.url))
    started = time.monotonic()
    browsed.goto((tmp_path / "index.html").as_uri())
    browsed.wait_for_function("[...document.images].some(image => image.naturalWidth)")
    print(f"first pictures after {time.monotonic() - started:.2f} s")
    for words in ("狐狸", "fox 777", "apple 77", ""):
        count = sum(all(word in f"{things[i % 10]}, picture {i}" for word in words.split()) for i in range(10_000))
        searched = browsed.evaluate(
            """words => { const box = document.getElementById("search"), from = performance.now()
            box.value = words; box.oninput(); return performance.now() - from }""",
            words,
        )
        print(f"{words!r}: {searched:.0f} ms")
        assert browsed.inner_text("#count") == f"{count} / 10000"
        assert browsed.locator("figure").count() >= min(count, 120)
    browsed.fill("#search", "picture 9993")
    browsed.click("figure")
    assert browsed.is_visible("dialog") and '"seed": 9993' in browsed.inner_text("dialog pre")
    assert all(url.startswith("file://") for url in asked) and len(asked) < 1500  # lazily
    context.close()


def test_numbers_that_are_none_and_damaged_pictures_leave_the_page_whole(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("mindpangu", '{"prompt": "a \\ud800 fox", "guidance": NaN, "steps": 1e999, "seed": 1}')
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    (tmp_path / "b.png").write_bytes(b"no picture")
    text = page(tmp_path, lambda count: None)
    text.encode()
    data = re.search(r"\[\{.*\}\]", text)[0]
    entries = json.loads(data, parse_constant=pytest.fail)
    assert [entry["file"] for entry in entries] == ["a.png", "b.png"]
    assert entries[0]["settings"]["seed"] == 1 and "guidance" not in entries[0]["settings"]
