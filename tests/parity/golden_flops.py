"""Write golden/flops.json: what a training step of narrow UNets multiplies, counted by PyTorch as diffusers' net runs.

python -m tests.parity.golden_flops      (needs the bench extra)
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from mindpangu.spec import UNetSpec

GOLDEN = Path(__file__).parent / "golden" / "flops.json"
BATCH, SIDE, TOKENS = 2, 16, 11
SD15 = UNetSpec(4, 4, 64, (1, 2, 4), 2, (1, 1, 0), 0, 48, 0, 32, heads=4, middle_depth=1)
SPECS = {
    "all levels attend": SD15,
    "wide context": replace(SD15, context_dim=256),
    "deep": replace(SD15, num_res_blocks=3),
}


def counted(spec: UNetSpec) -> int:
    """FLOPs of a forward and a backward pass, 2 per multiply-add."""
    import diffusers
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in spec.transformer_depth]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(spec.transformer_depth)]
    net = diffusers.UNet2DConditionModel(
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        block_out_channels=[spec.model_channels * mult for mult in spec.channel_mult],
        layers_per_block=spec.num_res_blocks,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=spec.heads,
        cross_attention_dim=spec.context_dim,
        use_linear_projection=True,
    )
    net.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())  # its products are counted
    x = torch.randn(BATCH, spec.in_channels, SIDE, SIDE)
    context = torch.randn(BATCH, TOKENS, spec.context_dim)
    with FlopCounterMode(display=False) as counter:
        net(x, torch.tensor([5] * BATCH), context).sample.sum().backward()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: counted(spec) for name, spec in SPECS.items()}, indent=1) + "\n")
