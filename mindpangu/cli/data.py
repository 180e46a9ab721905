"""`mindpangu data`: build data sets from public registries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Optional

import typer
from tqdm import tqdm

app = typer.Typer(help="Build data sets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Build data sets."""


@app.command()
def emoji(
    out: Path = typer.Option(..., help="Folder to build in; a second run completes an interrupted one."),
    style: list[str] = typer.Option([], help="Only these styles; may be repeated. Default: all."),
    size: int = typer.Option(256, help="Side of the stored pictures in pixels."),
    low_res_share: float = typer.Option(0.0, help="Share of the pictures kept at a low resolution only."),
    low_res_size: int = typer.Option(64, help="Side of those in pixels."),
) -> None:
    """About 1,400 emoji concepts in six art styles, named in English and Chinese."""
    from mindpangu.data.emoji import build
    from mindpangu.data.sources import STYLES

    bars: list[tqdm] = []

    def progress(name: str, done: int, total: int) -> None:
        if done == 1:
            bars.append(tqdm(total=total, desc=name, unit="picture"))
        bars[-1].update()
        if done == total:
            bars[-1].close()

    report = build(out, tuple(style) or tuple(STYLES), size, low_res_share, low_res_size, progress)
    counts = ", ".join(f"{name} {count}" for name, count in report.pictures.items())
    print(f"{sum(report.pictures.values())} pictures in {out}: {counts}")
    if report.missing:
        print(f"{len(report.missing)} missing, listed in {out / 'missing.txt'}")
        for line in report.missing:
            if line.startswith("style "):
                print(f"  {line}")


OUT = typer.Option(..., help="Folder to write.")


@app.command()
def pack(
    folder: Path = typer.Argument(
        ..., help="Pictures with captions beside them (fox.jpg, fox.txt), or `data emoji`'s."
    ),
    out: Path = OUT,
    per_shard: int = typer.Option(1000, min=1, help="Samples a shard."),
    caption: str = typer.Option("", help="Caption of pictures that have none beside them."),
    scenes: int = typer.Option(10000, min=1, help="How many scenes to draw of an emoji data set."),
    size: list[str] = typer.Option(["128x128"], help="Size of the scenes; may be repeated."),
    group: list[str] = typer.Option([], help="Only scenes of these groups; may be repeated."),
    compositions: float = typer.Option(0.3, min=0.0, max=1.0, help="Share of the scenes with stated places."),
    form: str = typer.Option("tar", "--format", help="tar (WebDataset's layout) or mindrecord."),
) -> None:
    """Shards of your own pictures or of scenes of the emoji data set; a second run goes on where the first one stopped.

    Processes that are given the same --out share the work.
    """
    from mindpangu.data import pack as packing
    from mindpangu.data.examples import DataConfig, Examples
    from mindpangu.errors import UserError

    count: Optional[int]
    found: Optional[packing.Captioned]
    if form not in packing.FORMATS:
        raise UserError(f"--format {form} is unknown; allowed: {', '.join(packing.FORMATS)}")

    if (folder / "manifest.jsonl").exists():
        config = DataConfig(
            folder,
            groups=tuple(group) or None,
            sizes=tuple(size),
            size_weights=(1.0,) * len(size),
            compositions=compositions,
        )
        count, found = scenes, None
        items: Iterable[packing.Item] = packing.scenes(Examples(config), scenes)
    else:
        count, found = None, packing.Captioned(folder, caption)
        items = found
    with tqdm(total=count, unit="picture", desc="packing") as bar:
        shards, samples = packing.pack(items, out, per_shard, bar.update, form)
    if found and found.silent:
        print(f"{found.silent} pictures have no caption beside them: left out, for example {found.an_example}")
    if found and found.unread:
        kinds = ", ".join(f".{kind}" for kind in sorted(found.unread))
        print(f"{sum(found.unread.values())} pictures of formats that are not read ({kinds}): left out")
    print(f"{samples} samples in {shards} shards in {out}")
    old = packing.left_over(out, shards, form)
    if old:
        print(f"{len(old)} shards of an earlier, larger run are there too, from {old[0].name} on: delete them")


@app.command()
def encode(
    shards: str = typer.Option(..., help="Tar or MindRecord files, a quoted pattern: 'shards/*.tar'."),
    model: str = typer.Option("emoji-128", help="Zoo name or model folder whose autoencoder and text encoders encode."),
    out: Path = OUT,
    size: list[str] = typer.Option(
        [], help="Bring pictures to the nearest of these sizes; may be repeated. Default: all."
    ),
    min_side: int = typer.Option(0, help="Leave out pictures whose shorter side is below this; others are enlarged."),
    max_bad_share: float = typer.Option(0.01, help="More unusable samples than this are an error."),
    features: bool = typer.Option(
        True, help="Keep text features; without, files are much smaller and training runs the text encoders."
    ),
) -> None:
    """Latents and text features of shards, made once; a second run goes on where the first one stopped.

    Processes that are given the same --out share the shards: start as many as you like, by msrun or one by one.
    """
    from mindpangu import runtime, zoo
    from mindpangu.data.shards import find
    from mindpangu.errors import UserError
    from mindpangu.models.loading import load_model_spec
    from mindpangu.parallel.ranks import join
    from mindpangu.train.encode import BAD, EncodeConfig
    from mindpangu.train.encode import encode as run

    runtime.start()
    ranks = join()
    folder, found = zoo.find(model), find(shards)
    spec = load_model_spec(folder)
    if not spec.size_dim:
        raise UserError(f"{model}: a model without a list of sizes; only PanGu-Draw's kind is trained on encoded data")
    sizes = tuple(sorted(spec.sizes, key=spec.sizes.__getitem__))
    config = EncodeConfig(folder, folder, sizes, spec.size_dim, tuple(size) or sizes, min_side, max_bad_share, features)
    with tqdm(total=len(found), unit="shard", desc="encoding", disable=not ranks.first) as bar:
        totals = run(found, config, out, bar.update)
    if not ranks.first:
        return
    print(f"{totals['used']} samples encoded in {out}; {totals['small']} too small, {totals['bad']} bad", end="")
    print(f", listed in {out / BAD}" if totals["bad"] else "")
