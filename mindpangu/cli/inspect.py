"""`mindpangu inspect`: what a model is made of and what it costs, without its weights."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table


def inspect(
    model: str = typer.Argument(..., help="A name in configs/model or in the zoo, a model folder, or a .yaml file."),
    size: str = typer.Option("", help="WIDTHxHEIGHT in pixels; the model's default without."),
    pictures: int = typer.Option(1, min=1, help="Pictures drawn together, for the memory."),
) -> None:
    """Parts, parameters, bytes, FLOPs and memory of a model: computed from its spec, without any weights."""
    from mindpangu import runtime
    from mindpangu.cost.flops import decoder_layers, text_layers, unet_layers
    from mindpangu.cost.memory import ITEMSIZE, drawing
    from mindpangu.images import parse_size
    from mindpangu.infer.request import check_size
    from mindpangu.models.inventory import find_spec, parameters, parts

    runtime.start()
    spec = find_spec(model)
    size = size or spec.pipeline.default_size
    check_size(size, spec.pipeline)
    width, height = (side // spec.vae.factor for side in parse_size(size))
    layers = {name: unet_layers(unet, 1, height, width, spec.tokens) for name, unet in spec.unets.items()}
    layers["vae"] = decoder_layers(spec.vae, 1, height, width)
    layers.update({name: text_layers(text, 1) for name, text in spec.texts.items()})
    table = Table(title=f"{spec.pipeline.name}: computed from its spec")
    for heading in ("part", "tensors", "parameters", "fp32", "fp16", f"FLOPs forward, {size}"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    total, all_shapes = 0, parts(spec)
    for name, shapes in all_shapes.items():
        count = parameters(shapes)
        total += count
        flops = _scaled(sum(layer.flops for layer in layers[name]))
        table.add_row(name, str(len(shapes)), f"{count:,}", _gib(4 * count), _gib(2 * count), flops)
    table.add_section()
    table.add_row("all", "", f"{total:,}", _gib(4 * total), _gib(2 * total), "")
    memory = Table(title=f"memory on a CPU, drawing {pictures} at {size} together: computed, see docs/speed.md")
    for heading in ("--dtype", "--offload", "weights", "waiting", "all else", "peak"):
        memory.add_column(heading, justify="right")
    for dtype in ITEMSIZE:
        for offload in (False, True):
            one = drawing(spec, all_shapes, size, pictures, dtype, offload)
            numbers = (_gib(number) for number in (one.weights, one.waiting, one.working, one.peak))
            memory.add_row(dtype, "yes" if offload else "no", *numbers)
    console = Console(width=120)
    console.print(table)
    console.print(memory)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _scaled(flops: float) -> str:
    return f"{flops / 1e12:.2f} T" if flops >= 1e12 else f"{flops / 1e9:.2f} G"
