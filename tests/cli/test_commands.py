"""The command line end to end on the tiny model: outputs, exit codes, one line an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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


def test_warmup_compiles_what_the_commands_then_find(model_folder, tmp_path):
    """A drawing and a batch of the size, number and steps that it was asked for compile nothing more."""
    here = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "MINDPANGU_CPU_OPS": "off"}
    asked = ["--model", str(model_folder)]
    options = [*asked, "--steps", "2", "--size", "48x32", "--n", "2", "--batch", "3"]

    def kept():
        return sorted(path.name for path in (tmp_path / "cache" / "mindpangu" / "graphs").iterdir())

    done = mindpangu("warmup", *options, "--command", "generate", "--command", "batch", **here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", compiled\n") == 2 and "2 sets of graphs" in done.stdout
    before = kept()
    drawn = [
        "generate",
        "two dogs",
        *asked,
        "--size",
        "48x32",
        "--steps",
        "2",
        "--n",
        "2",
        "--out",
        str(tmp_path / "a"),
    ]
    assert mindpangu(*drawn, **here).returncode == 0
    (tmp_path / "p.txt").write_text("a cat\na red bus\na tree\na fox\n", encoding="utf-8")
    batch = ["batch", str(tmp_path / "p.txt"), *asked, "--set", "steps=2", "--set", "size=48x32", "--batch", "3"]
    assert mindpangu(*batch, "--out", str(tmp_path / "b"), **here).returncode == 0
    assert kept() == before
    assert "was there already" in mindpangu("warmup", *options, "--command", "generate", **here).stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--command", "train"], "command 'train' is unknown; allowed: generate, batch, coop"),
        (["--command", "coop"], "--command coop needs --recipe"),
        (["--size", "7x7"], "size 7x7 cannot be drawn"),
    ],
)
def test_warmup_says_what_it_cannot_do(options, words):
    done = mindpangu("warmup", *options)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


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


def test_a_second_run_writes_over_nothing_and_short_help_is_help(model_folder, tmp_path):
    for prompt in ("a fox", "a red bus"):
        mindpangu("generate", prompt, "--model", str(model_folder), "--steps", "1", "--out", str(tmp_path / "o"))
    said = [read_settings(tmp_path / "o" / f"000{i}.png")["prompt"] for i in range(2)]
    assert said == ["a fox", "a red bus"]
    assert mindpangu("generate", "-h").stdout == mindpangu("generate", "--help").stdout
    failed = mindpangu("generate", "a", "--size", "9x9", "--model", str(model_folder), "--out", str(tmp_path / "none"))
    assert failed.returncode == 2 and not (tmp_path / "none").exists()


def test_ctrl_c_is_one_line_and_leaves_what_was_finished(model_folder, tmp_path):
    arguments = ["generate", "a fox", "--n", "4000", "--batch", "2", "--steps", "2", "--out", str(tmp_path / "o")]
    command = [str(Path(sys.executable).with_name("mindpangu")), *arguments, "--model", str(model_folder)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "MINDPANGU_CPU_OPS": "off"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "o").glob("*.png"))) < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and said.endswith("mindpangu: interrupted; what was finished is on disk\n")
    assert all(read_settings(path)["prompt"] == "a fox" for path in (tmp_path / "o").glob("*.png"))
    assert not list((tmp_path / "cache" / "mindpangu" / "graphs").iterdir())


def test_shipped_files_are_found_by_their_names_anywhere(tmp_path, monkeypatch):
    from mindpangu.config import load, read_yaml
    from mindpangu.infer.coop import CoopConfig
    from mindpangu.train.config import TrainConfig

    monkeypatch.chdir(tmp_path)
    assert load("configs/infer/coop_low_high.yaml", CoopConfig).output
    assert load("configs/scratch/structure.yaml", TrainConfig).diffusion.t_min == 450
    assert read_yaml(Path("configs/train/histogram.yaml"))
