"""`mindpangu inspect`: what a model is made of and what it costs, without its weights."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table


def inspect(
    model: str = typer.Argument(..., help="A name in configs/model or in the zoo, a model folder, or a .yaml file."),
    size: str = typer.Option("", help="WIDTHxHEIGHT in pixels for the FLOPs; the model's default without."),
) -> None:
    """Parts, parameters, bytes and FLOPs of a model. Computed from its spec: no weights are read or allocated."""
    from mindpangu import runtime
    from mindpangu.data.examples import parse_size
    from mindpangu.infer.request import check_size
    from mindpangu.models.cost import unet_layers
    from mindpangu.models.inventory import find_spec, parameters, parts

    runtime.start()
    spec = find_spec(model)
    size = size or spec.pipeline.default_size
    check_size(size, spec.pipeline)
    width, height = (side // spec.vae.factor for side in parse_size(size))
    table = Table(title=f"{spec.pipeline.name}: computed from its spec")
    for heading in ("part", "tensors", "parameters", "fp32", "fp16", f"FLOPs forward, {size}"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    total = 0
    for name, shapes in parts(spec).items():
        count = parameters(shapes)
        total += count
        flops = ""
        if name in spec.unets:
            tokens = next(iter(spec.texts.values())).context_length
            layers = unet_layers(spec.unets[name], 1, height, width, tokens)
            flops = _scaled(sum(layer.flops for layer in layers))
        table.add_row(name, str(len(shapes)), f"{count:,}", _gib(4 * count), _gib(2 * count), flops)
    table.add_section()
    table.add_row("all", "", f"{total:,}", _gib(4 * total), _gib(2 * total), "")
    Console(width=120).print(table)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _scaled(flops: float) -> str:
    return f"{flops / 1e12:.2f} T" if flops >= 1e12 else f"{flops / 1e9:.2f} G"
