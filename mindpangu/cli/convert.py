"""`mindpangu convert`: other people's checkpoints into model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import typer
from rich.console import Console

from mindpangu.cli.generate import check_writable

GB = 10**9


def convert(
    low: Path = typer.Argument(..., help="Released file of the low time steps: pangu_low_timestamp-….ckpt."),
    high: Path = typer.Argument(..., help="Released file of the high time steps: pangu_high_timestamp-….ckpt."),
    out: Path = typer.Option(..., help="Model folder to write; an interrupted conversion into it goes on."),
    vocabulary: Optional[Path] = typer.Option(
        None, help="vocab.txt of the Chinese tower (Chinese-CLIP's, 21,128 lines); the released files do not hold it."
    ),
    dtype: str = typer.Option("fp16", help="fp16 or fp32."),
    shard_gb: float = typer.Option(1.0, min=1e-6, help="Largest file, in GB; memory needed is about three times that."),
    model: str = typer.Option("pangu_draw_v3", help="What the files hold: a name in configs/model or a .yaml file."),
) -> None:
    """Both released PanGu-Draw files -> one model folder in safetensors, the parts that they share stored once."""
    from mindpangu import runtime
    from mindpangu.errors import UserError
    from mindpangu.models.conversion import DTYPES, convert_release
    from mindpangu.models.inventory import find_spec

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is unknown; allowed: {', '.join(DTYPES)}")
    check_writable(out)
    runtime.start()
    with Console(stderr=True).status("reading the indexes") as status:
        convert_release(low, high, find_spec(model), out, dtype, round(shard_gb * GB), vocabulary, status.update)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {size / GB:.2f} GB")
    if vocabulary is None:
        print("tokenizer_a.json is not there: run again with --vocabulary before you draw; what is there is kept")
