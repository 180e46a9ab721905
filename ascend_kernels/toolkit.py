"""What a machine needs before MindSpore can run on an Ascend NPU, and what of it is absent here."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from pathlib import Path

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
