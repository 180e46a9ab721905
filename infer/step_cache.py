"""Step caching (DeepCache, arXiv 2312.00858): neighbouring steps share the features below the full resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindpangu.models.loading import SharedUNet


class StepCache:
    """A net for one sampling; its deep features are computed at every `interval`-th call only."""

    def __init__(self, unet: SharedUNet, interval: int) -> None:
        self.unet, self.interval = unet, interval
        self.calls, self.deep = 0, None

    def __call__(self, *inputs: Any) -> Any:
        self.calls += 1
        if (self.calls - 1) % self.interval:
            return self.unet.reusing_deep(self.deep, *inputs)
        out, self.deep = self.unet.with_deep(*inputs)
        return out
