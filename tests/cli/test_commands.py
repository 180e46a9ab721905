"""The command line end to end on the tiny model: outputs, exit codes, one line an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mindpangu.infer.image_file import read_settings


def mindpangu(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(Path(sys.executable).with_name("mindpangu")), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_generate_writes_pictures_and_a_sheet(model_folder, tmp_path):
    prompts = ("a red bus on a blue background", "一只戴帽子的狐狸, 3D风格")
    done = mindpangu(
        "generate", *prompts, "--model", str(model_folder), "--steps", "2", "--size", "48x32", "--style",
        "fluent_3d=2", "--n", "2", "--seed", "1", "--out", str(tmp_path / "o"), "--grid",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 pictures in" in done.stdout
    files = sorted(p.name for p in (tmp_path / "o").iterdir())
    assert files == ["0000.png", "0001.png", "0002.png", "0003.png", "grid.png"]
    with Image.open(tmp_path / "o" / "0002.png") as picture:
        assert picture.size == (48, 32)
    settings = read_settings(tmp_path / "o" / "0002.png")
    assert settings["prompt"] == prompts[1]
    assert settings["styles"] == {"fluent_3d": 2.0}


def test_graphs_are_kept_on_disk_by_what_they_are_for(model_folder, tmp_path):
    """The second run takes the first one's graphs and draws the same; another size does not take them."""

    def draw(size, out):
        folder = tmp_path / out
        done = mindpangu(
            "generate", "a fox", "--model", str(model_folder), "--steps", "2", "--size", size, "--out", str(folder),
            XDG_CACHE_HOME=str(tmp_path / "cache"), MINDPANGU_CPU_OPS="off",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with Image.open(folder / "0000.png") as picture:
            return picture.tobytes(), {p.name for p in (tmp_path / "cache" / "mindpangu" / "graphs").iterdir()}

    first, kept = draw("32x32", "a")
    again, still = draw("32x32", "b")
    assert first == again
    assert len(kept) == 1 and kept == still
    assert len(draw("48x32", "c")[1]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "x", "--model", "none"], "neither in the zoo"),
        (["generate", "x", "--style", "noto=much"], "use name=weight"),
        (["train", "--config", "none.yaml"], "none.yaml: no such file"),
        (["data", "emoji", "--out", "x", "--style", "apple"], "style 'apple' is unknown"),
        (["eval", "vae", "--model", "none"], "neither in the zoo"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = mindpangu(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    done = mindpangu("generate", "x", "--out", str(tmp_path / "file" / "out"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_doctor_names_what_ascend_lacks():
    done = mindpangu("doctor")
    assert "mindspore   2.9" in done.stdout
    assert "ONEDNN_MAX_CPU_ISA" in done.stdout
    assert "Ascend      missing: " in done.stdout or "Ascend      complete" in done.stdout


def test_help_lists_the_commands():
    done = mindpangu("--help")
    for command in ("generate", "train", "data", "eval", "zoo", "doctor"):
        assert command in done.stdout
