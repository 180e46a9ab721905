"""Shared pieces: the sample data set, and a whole tiny model made by the real trainers in a few seconds."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import mindpangu  # noqa: F401 - sets the environment before MindSpore is imported
from tests.tiny import training, with_lines


def vary(source: Path, target: Path) -> None:
    """Write the checkpoint's weights with noise on them: what four steps leave at zero is zero no more."""
    from mindpangu.checkpoint.store import load_tensors, read_card, save_checkpoint

    rng = np.random.default_rng(0)
    varied = {
        name: (value + 0.05 * rng.standard_normal(value.shape)).astype(np.float16)
        for name, value in load_tensors(source).items()
    }
    save_checkpoint(target, varied, read_card(source))


@contextmanager
def without_graphs():
    """For nets as small as these the compilation is most of the time."""
    from mindpangu import runtime

    runtime.start("CPU")
    from mindspore import GRAPH_MODE, PYNATIVE_MODE, set_context

    set_context(mode=PYNATIVE_MODE)
    try:
        yield
    finally:
        set_context(mode=GRAPH_MODE)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder with the exports of the trainings, each of four steps; the texture net is the structure net, varied."""
    from mindpangu.config import parse
    from mindpangu.train.config import TrainConfig
    from mindpangu.train.run import run

    folder = tmp_path_factory.mktemp("runs")
    with without_graphs():
        for part in ("vae", "clip", "structure"):
            run(parse(training(part, folder), TrainConfig, part))
    vary(folder / "structure" / "unet.safetensors", folder / "texture" / "unet.safetensors")
    return folder


@pytest.fixture(scope="session")
def line_runs(runs) -> Path:
    """The same folder, with a net that knows no words and a ControlNet for it."""
    from mindpangu.config import parse
    from mindpangu.train.config import TrainConfig
    from mindpangu.train.run import run

    with_lines(runs / "lined")
    with without_graphs():
        run(parse(training("base", runs), TrainConfig, "base"))
        vary(runs / "base" / "unet.safetensors", runs / "base" / "unet.safetensors")
        run(parse(training("control", runs), TrainConfig, "control"))
    return runs


@pytest.fixture(scope="session")
def model_folder(runs, tmp_path_factory) -> Path:
    """The tiny model, packed by the real command."""
    from mindpangu.cli.zoo import pack

    folder = tmp_path_factory.mktemp("model")
    spec = folder / "spec.yaml"
    spec.write_text(
        "{name: tiny, sizes: {32x32: 0, 48x32: 1}, size_dim: 8, prediction: v, default_size: 32x32,"
        " experts: {structure: 500, texture: 0},"
        " default_guidance: 3, styles: {noto: {en: '{}, Noto style', zh: '{}, Noto风格'},"
        " fluent_3d: {en: '{}, 3D style', zh: '{}, 3D风格'}}}",
        encoding="utf-8",
    )
    parts = {"vae": "vae/vae", "text_encoder": "clip/text_encoder", "text_encoder_2": "clip/text_encoder_2"}
    parts.update(structure="structure/unet", texture="texture/unet")
    pack(
        spec=spec,
        part=[f"{name}={runs / source}" for name, source in parts.items()],
        out=folder / "tiny",
        override=[],
        text_map=None,
    )
    return folder / "tiny"


@pytest.fixture(scope="session")
def line_model(line_runs, tmp_path_factory) -> Path:
    """A tiny model that knows no words, with a ControlNet for line drawings."""
    from mindpangu.checkpoint.store import load_tensors, read_card, save_checkpoint
    from mindpangu.cli.zoo import pack

    folder = tmp_path_factory.mktemp("line")
    spec = folder / "line.yaml"
    spec.write_text(
        "{name: line, sizes: {32x32: 0}, experts: {unet: 0}, text_encoders: [], added_cond: none, prediction: v,"
        " default_size: 32x32, default_guidance: 1, schedule: {kind: cosine}}",
        encoding="utf-8",
    )
    steered = load_tensors(line_runs / "control" / "controlnet.safetensors")
    rng = np.random.default_rng(0)
    steered = {k: (v + 0.3 * rng.standard_normal(v.shape)).astype(np.float16) for k, v in steered.items()}
    card = read_card(line_runs / "control" / "controlnet.safetensors")
    save_checkpoint(folder / "controlnet.safetensors", steered, card)
    parts = [f"vae={line_runs / 'vae' / 'vae'}", f"unet={line_runs / 'base' / 'unet'}"]
    pack(
        spec=spec, part=[*parts, f"controlnet={folder / 'controlnet'}"], out=folder / "line", override=[], text_map=None
    )
    return folder / "line"


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs Debian's chromium (apt-get install chromium)")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def little_memory():
    """A module whose tests together take less than 1 GB at their peak."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted anew, see proc(5)
    before = _resident("VmRSS")
    yield
    assert _resident("VmHWM") - before < 1_000_000


def _resident(which: str) -> int:
    """Kilobytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))


@pytest.fixture()
def uncompiled():
    """A test without graphs."""
    with without_graphs():
        yield


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=3, help="How often tests/train/test_kills.py kills a training.")
    parser.addoption("--screenshots", help="Folder for pictures of the studio's page.")
