"""MindPanGu: PanGu-Draw (arXiv 2312.16486) for MindSpore, on Ascend and on CPU.

>>> from mindpangu import PanGuDraw
>>> pictures = PanGuDraw.from_pretrained("emoji-128")("一只狐狸, 3D风格")
"""

from __future__ import annotations

import importlib
from typing import Any

from mindpangu.errors import UserError
from mindpangu.runtime import prepare_environment
from mindpangu.version import __version__

prepare_environment()

__all__ = ["PanGuDraw", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    """`PanGuDraw`, imported when first asked for, so that `import mindpangu` stays instant."""
    if name == "PanGuDraw":
        return importlib.import_module("mindpangu.infer.pipeline").PanGuDraw
    raise AttributeError(f"module 'mindpangu' has no attribute '{name}'")
