"""What is told of a training: lines that outlive a stop, event files, one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mindpangu import runtime
from mindpangu.errors import UserError
from mindpangu.train.report import page
from mindpangu.train.stats import STATS, Record, read_stats


def line(nimg, **changes):
    values = {"nimg": nimg, "loss": 1 / nimg, "lr": 1e-3, "grad_norm": 0.5, "img_per_sec": 10.0, "waited": 0.0}
    return {**values, "seconds": nimg / 10, "skipped": 0, "loss_scale": 1.0, **changes}


def told(folder, first, last, tensorboard=False, resumed_at=0):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(folder / f"samples-{last:08d}.png")
    with Record(folder, resumed_at, tensorboard) as record:
        for nimg in range(first, last + 1, 8):
            record.line(line(nimg))
        record.samples(folder / f"samples-{last:08d}.png", last)


def test_what_a_resumed_run_sees_again_is_told_once(tmp_path):
    told(tmp_path / "run", 8, 40)
    with (tmp_path / "run" / STATS).open("a") as file:
        file.write('{"nimg": 48, "lo')  # killed within a line
    assert [one["nimg"] for one in read_stats(tmp_path / "run")] == [8, 16, 24, 32, 40]
    told(tmp_path / "run", 24, 56, resumed_at=16)
    assert [one["nimg"] for one in read_stats(tmp_path / "run")] == [8, 16, 24, 32, 40, 48, 56]


def test_event_files_hold_the_curves_and_the_samples(tmp_path):
    runtime.start("CPU")  # MindSpore's own protobuf has to come first
    from tensorboardX.proto.event_pb2 import Event

    told(tmp_path / "run", 8, 24, tensorboard=True)
    values: dict[str, list[int]] = {}
    for path in (tmp_path / "run" / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:  # TFRecord: length, its checksum, the event, its checksum
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                values.setdefault(value.tag, []).append(event.step)
    assert values["loss"] == values["lr"] == [8, 16, 24]
    assert values["samples"] == [24]


def test_the_page_stands_alone_and_escapes_what_it_is_told(tmp_path):
    told(tmp_path / "a", 8, 40)
    told(tmp_path / "b", 8, 24)
    config = {"output_dir": "<script>alert(1)</script>"}
    (tmp_path / "a" / "unet.json").write_text(json.dumps({"config": config, "git_commit": "abc"}))
    text = page({"<a>": tmp_path / "a", "b": tmp_path / "b"})
    assert "<script>" not in text
    assert "&lt;a&gt;" in text
    assert text.count("<svg") == 6
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "https://matplotlib.org", ""
    ).replace("http://creativecommons.org", "")


def test_no_run_no_page(tmp_path):
    with pytest.raises(UserError, match="a training writes it into its output_dir"):
        page({"x": tmp_path})
    (tmp_path / STATS).write_text("")
    with pytest.raises(UserError, match="no lines yet"):
        read_stats(Path(tmp_path))
