"""A folder's page: every picture is on it, and no prompt gets out of its place."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

import pytest
from PIL import Image

from mindpangu.errors import UserError
from mindpangu.infer.files import save_drawing
from mindpangu.infer.gallery import page
from mindpangu.infer.pipeline import Drawing


def test_every_picture_is_there_with_what_it_carries(tmp_path):
    prompts = ["a fox </script><script>alert(1)</script>", "一只狐狸 & 'more'", "<!-- "]
    for i, prompt in enumerate(prompts):
        settings = {"prompt": prompt, "seed": i, "model": "tiny", "digest": "abc", "version": "0"}
        (tmp_path / "a b").mkdir(exist_ok=True)
        save_drawing(Drawing(Image.new("RGB", (8, 8)), prompt, 0, settings, None), tmp_path / "a b" / f"{i}#.png")
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
