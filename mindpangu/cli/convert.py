"""`mindpangu convert`: other people's checkpoints into model folders, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer
from rich.console import Console

from mindpangu import zoo
from mindpangu.cli.generate import check_writable
from mindpangu.errors import UserError

if TYPE_CHECKING:
    from mindpangu.convert.writer import ConversionOptions

GB = 10**9
RELEASE = "pangu_draw_v3"


def convert(
    sources: list[Path] = typer.Argument(
        ...,
        help="A .safetensors file or a diffusers folder; for PanGu-Draw pangu_low_timestamp-….ckpt and "
        "pangu_high_timestamp-….ckpt; a model folder for --to diffusers.",
    ),
    out: Path = typer.Option(..., help="Folder to write; an interrupted conversion into it goes on."),
    model: Optional[str] = typer.Option(
        None, help=f"What the source holds: a name in configs/model or a .yaml file; {RELEASE} for two files."
    ),
    controlnet: bool = typer.Option(False, "--controlnet", help="The source is a ControlNet for that model."),
    to: str = typer.Option("mindpangu", help="mindpangu or diffusers."),
    vocabulary: Optional[Path] = typer.Option(
        None,
        help="vocab.txt of a Chinese text encoder (Chinese-CLIP's has 21,128 lines); PanGu-Draw's files lack it.",
    ),
    dtype: str = typer.Option("fp16", help="fp16 or fp32."),
    shard_gb: float = typer.Option(0.5, min=1e-6, help="Largest file, in GB; memory needed is about five times that."),
) -> None:
    """Weights of PanGu-Draw 3.0, Stable Diffusion 1.x, 2.x or XL -> a model folder in safetensors; or the way back."""
    from mindpangu.convert.writer import DTYPES, ConversionOptions

    if to not in ("mindpangu", "diffusers"):
        raise UserError(f"--to {to} is unknown; allowed: mindpangu, diffusers")
    if len(sources) > 2:
        raise UserError(f"{len(sources)} sources were given; one, or PanGu-Draw's two files, are needed")
    if controlnet and (len(sources) != 1 or to != "mindpangu"):
        raise UserError("--controlnet goes with one source and --to mindpangu")
    if vocabulary is not None and controlnet:
        raise UserError("--vocabulary belongs to a Chinese text encoder; a ControlNet has none")
    check_writable(out)
    if to == "diffusers":
        _export(sources, out)
    else:
        if dtype not in DTYPES:
            raise UserError(f"--dtype {dtype} is unknown; allowed: {', '.join(DTYPES)}")
        _import(sources, out, model, controlnet, ConversionOptions(dtype, round(shard_gb * GB), vocabulary))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / GB:.2f} GB")
    if len(sources) == 2 and vocabulary is None:
        print("tokenizer.json is not there: run again with --vocabulary before you draw; what is there is kept")


def _import(
    sources: list[Path],
    out: Path,
    model: Optional[str],
    controlnet: bool,
    options: ConversionOptions,
) -> None:
    from mindpangu import runtime
    from mindpangu.convert.pangu_draw import convert_pangu_draw
    from mindpangu.convert.stable_diffusion import convert_controlnet, convert_stable_diffusion
    from mindpangu.models.inventory import described, find_spec

    if model is None and len(sources) == 1:
        raise UserError(f"say what {sources[0]} holds: --model {', '.join(x for x in described() if x != RELEASE)}")
    runtime.start()
    spec = find_spec(model or RELEASE)
    whole = convert_pangu_draw if len(sources) == 2 else convert_stable_diffusion
    with Console(stderr=True).status("reading the indexes") as status:
        (convert_controlnet if controlnet else whole)(sources, spec, out, options, status.update)


def _export(sources: list[Path], out: Path) -> None:
    from mindpangu import runtime
    from mindpangu.convert.to_diffusers import export_diffusers

    if len(sources) != 1:
        raise UserError(f"{len(sources)} sources were given; --to diffusers takes one model folder")
    folder = zoo.find(sources[0])
    runtime.start()
    with Console(stderr=True).status("reading") as status:
        export_diffusers(folder, out, status.update)


def export(
    model: str = typer.Argument("emoji-128", help="Zoo name or model folder."),
    mindir: Path = typer.Option(..., help="Folder to write: every net as a MindIR file, tokenizers, export.json."),
    size: Optional[str] = typer.Option(None, help="Size of the pictures, WIDTHxHEIGHT; by default the model's own."),
    rows: int = typer.Option(2, min=1, help="Rows of a UNet's call: with guidance twice the pictures."),
) -> None:
    """A model's nets as MindIR, fixed in size, for MindSpore Lite (Ascend 310P) and programs without Python."""
    from mindpangu import runtime

    folder = zoo.find(model)
    check_writable(mindir)
    runtime.start()
    from mindpangu.convert.to_mindir import export_mindir

    chosen = size or str(zoo.description(folder)["default_size"])
    with Console(stderr=True).status("reading") as status:
        export_mindir(folder, mindir, chosen, rows, status.update)
    total = sum(file.stat().st_size for file in mindir.glob("*.mindir"))
    print(f"{mindir}: {len(list(mindir.glob('*.mindir')))} nets for {chosen}, {rows} rows, {total / 1e6:.1f} MB")
