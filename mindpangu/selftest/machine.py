"""What is installed, what is in force, and what Ascend lacks."""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Optional

from mindpangu import runtime
from mindpangu.version import __version__

LIBRARIES = ("ascendcl", "ge_runner", "hccl")
DRIVER = Path("/usr/local/Ascend/driver/version.info")
PACKAGES = ("mindspore", "mindformers", "numpy", "pillow", "safetensors", "tokenizers", "torch")

# MindFormers' table of what goes together, and what MindSpore 2.9.0 accepts.
PAIRED = {"CANN": "9.0.0", "driver": "26.0.RC1", "mindformers": "1.9.0"}
ACCEPTED = ("8.2", "8.3", "8.5", "9.0")


def found_version(file: Path) -> Optional[str]:
    """The version in a `version.info` of CANN or of the driver; None where there is none."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    said = re.search(r"^[Vv]ersion=\[?([\w.]+)", text, re.MULTILINE)
    return said.group(1) if said else None


def cann() -> Optional[str]:
    """CANN's version, where MindSpore looks for it; None without CANN."""
    home = os.environ.get("ASCEND_HOME_PATH")
    return found_version(Path(home) / "compiler" / "version.info") if home else None


def missing() -> list[str]:
    """One entry a missing piece: driver, CANN's libraries and environment, kernel compiler. Empty: complete."""
    lacking = []
    if not DRIVER.exists():
        lacking.append(f"NPU driver ({DRIVER})")
    if "ASCEND_HOME_PATH" not in os.environ:
        lacking.append("CANN toolkit (ASCEND_HOME_PATH is not set; source its set_env.sh)")
    lacking += [f"CANN library lib{name}.so" for name in LIBRARIES if not _has_library(name)]
    if shutil.which("ccec") is None:
        lacking.append("AscendC compiler (ccec)")
    return lacking


def _has_library(name: str) -> bool:
    if ctypes.util.find_library(name):
        return True
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return any(folder and (Path(folder) / f"lib{name}.so").exists() for folder in folders)


def facts() -> Iterator[tuple[str, str]]:
    """(what, found), in the order in which one asks; MindSpore is started."""
    device = runtime.start()
    yield "mindpangu", f"{__version__} on Python {platform.python_version()}, {platform.machine()} {sys.platform}"
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    here = f"{device} {runtime.ascend_chip()}".strip() if device == "Ascend" else device
    yield "device", f"{here}, graph mode, {runtime.cores()} cores, nets compute in {runtime.compute_dtype()}"
    for setting in runtime.settings():
        yield "setting", f"{setting.name}={setting.value} (set by {setting.origin})"
        if setting.name == "ONEDNN_MAX_CPU_ISA" and setting.value != runtime.ONEDNN_ISA:
            yield "", f"convolutions may be 70 times slower than with {runtime.ONEDNN_ISA}; unset it"
    if device == "CPU":
        from mindpangu.ops.cpu.build import library

        chosen = runtime.cpu_operators()
        built = library() if chosen != "off" else None
        yield "operators", f"ours, {chosen}" if built else "MindSpore's own, 2-4 times slower"
    installed = cann()
    if installed is not None:
        fits = "" if installed.startswith(ACCEPTED) else f"; MindSpore 2.9 accepts {', '.join(ACCEPTED)}"
        yield "CANN", f"{installed}{fits}"
    yield "paired", f"with MindSpore 2.9: {', '.join(' '.join(pair) for pair in PAIRED.items())} (MindFormers' table)"
    lacking = missing()
    yield "Ascend", "complete" if not lacking else "missing: " + "; ".join(lacking)
