"""`mindpangu doctor`: what is installed, what is in force, what is missing."""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mindpangu import runtime, zoo
from mindpangu.errors import UserError
from mindpangu.version import __version__

LIBRARIES = ("ascendcl", "ge_runner", "hccl")
DRIVER = Path("/usr/local/Ascend/driver/version.info")


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


PACKAGES = ("mindspore", "mindformers", "numpy", "pillow", "safetensors", "tokenizers", "torch")


def doctor() -> None:
    """Print versions, device, settings, what Ascend lacks, and the state of the zoo. Exit code 2 if a check fails."""
    device = runtime.start()
    print(f"mindpangu   {__version__} on Python {platform.python_version()}, {platform.machine()} {sys.platform}")
    for package in PACKAGES:
        try:
            print(f"{package:<11} {version(package)}")
        except PackageNotFoundError:
            print(f"{package:<11} not installed")
    print(f"device      {device}, graph mode, {runtime.cores()} cores")
    for setting in runtime.settings():
        print(f"setting     {setting.name}={setting.value} (set by {setting.origin})")
        if setting.name == "ONEDNN_MAX_CPU_ISA" and setting.value != runtime.ONEDNN_ISA:
            print(f"            convolutions may be 70 times slower than with {runtime.ONEDNN_ISA}; unset it")
    if device == "CPU":
        from mindpangu.ops.cpu.build import library

        chosen = runtime.cpu_operators()
        built = library() if chosen != "off" else None
        print("operators   " + (f"ours, {chosen}, in {built.parent}" if built else "MindSpore's own, 2-4 times slower"))
    lacking = missing()
    print("Ascend      " + ("complete" if not lacking else "missing: " + "; ".join(lacking)))
    failed = False
    for name in zoo.names():
        try:
            zoo.check(zoo.find(name))
            print(f"zoo         {name}: intact")
        except UserError as error:
            failed = True
            print(f"zoo         {name}: {error}")
    if failed:
        raise UserError("the zoo is damaged, see above; reinstall mindpangu")
