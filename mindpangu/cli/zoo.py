"""`mindpangu zoo`: list, check and pack model folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Optional

import typer

from mindpangu import zoo as shelf
from mindpangu.errors import UserError
from mindpangu.text.vocabulary import FILE as VOCABULARY

app = typer.Typer(help="Model folders: list, check, pack.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """Name and size of every shipped model, and whether it is intact."""
    for name in shelf.names():
        folder = shelf.find(name)
        shelf.check(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{name}: {size / 1e6:.1f} MB, intact")


@app.command()
def pack(
    spec: Path = typer.Option(..., help="YAML of the model's PipelineSpec, for example configs/zoo/model.yaml."),
    part: list[str] = typer.Option(..., help="NAME=FILE: a checkpoint without suffix, as a training exported it."),
    out: Path = typer.Option(..., help="Model folder to write."),
    override: list[str] = typer.Option([], "--set", help="key=value over the spec; may be repeated."),
    text_map: Optional[Path] = typer.Option(
        None, help="text_map.safetensors of a text distillation whose teacher the UNets know: they learn its students."
    ),
) -> None:
    """Put what trainings exported into one model folder, and check it.

    The model's own parts are needed; more may be named, for example a ControlNet (controlnet=…) or a bridge's folder.
    """
    from mindpangu.checkpoint.store import verify, write_atomically
    from mindpangu.config import dump, load
    from mindpangu.spec import PipelineSpec

    model = load(spec, PipelineSpec, override)
    sources = {name: Path(source) for name, _, source in (text.partition("=") for text in part)}
    missing = [name for name in ("vae", *model.text_encoders, *model.experts) if name not in sources]
    if missing:
        raise UserError(f"--part: {', '.join(missing)} of {model.name} missing; for example --part vae=runs/vae/vae")
    for source in sources.values():
        verify(source.with_suffix(".safetensors"))
    for name, source in sources.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(source.with_suffix(suffix), (out / name).with_suffix(suffix))
    if text_map is not None:
        for name in model.experts:
            _understand(out / f"{name}.safetensors", text_map)
    for encoder in model.text_encoders:
        shutil.copyfile(shelf.tokenizer_path(sources[encoder].parent, encoder), shelf.tokenizer_path(out, encoder))
    if model.text_encoders and (vocabulary := sources[model.text_encoders[-1]].parent / VOCABULARY).exists():
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(vocabulary.with_suffix(suffix), (out / VOCABULARY).with_suffix(suffix))
    write_atomically(out / "model.json", (json.dumps(dump(model), indent=2, ensure_ascii=False) + "\n").encode())
    shelf.check(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB, intact")


def _understand(unet: Path, text_map: Path) -> None:
    """Have the maps join a UNet's weights. Raises: UserError where it is of other text encoders."""
    from mindpangu.checkpoint.store import half, load_tensors, read_card, save_checkpoint
    from mindpangu.train.text_map import TextMap

    maps, card, weights = TextMap.load(text_map), read_card(unet), load_tensors(unet)
    known = card["spec"]["context_dim"]
    if known != maps.tokens.shape[1]:
        raise UserError(
            f"{text_map}: its teacher's tokens have {maps.tokens.shape[1]} numbers, and {unet.stem} knows {known}"
        )
    vector_dim = card["spec"]["vector_dim"] + maps.pooled.shape[0] - maps.pooled.shape[1]
    spec = {**card["spec"], "context_dim": maps.tokens.shape[0], "vector_dim": vector_dim}
    save_checkpoint(unet, half(maps.folded(weights)), {**card, "spec": spec, "text_map": read_card(text_map)["sha256"]})
