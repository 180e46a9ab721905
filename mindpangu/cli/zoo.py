"""`mindpangu zoo`: list, check and pack model folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import typer

from mindpangu import zoo as shelf

app = typer.Typer(help="Model folders: list, check, pack.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """Name and size of every shipped model, and whether it is intact."""
    for name in shelf.names():
        folder = shelf.find(name)
        shelf.check(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size / 1e6:.1f} MB, intact")


@app.command()
def pack(
    runs: Path = typer.Option(..., help="Folder of the trainings."),
    structure: str = typer.Option("structure", help="The structure generator's training there."),
    texture: str = typer.Option("texture", help="The texture generator's."),
    spec: Path = typer.Option(..., help="YAML of the model's PipelineSpec, for example configs/zoo/model.yaml."),
    out: Path = typer.Option(..., help="Model folder to write."),
) -> None:
    """Put what the trainings exported into one model folder, and check it."""
    from mindpangu.checkpoint.store import verify, write_atomically
    from mindpangu.config import dump, load
    from mindpangu.models.spec import PipelineSpec

    model = load(spec, PipelineSpec)
    out.mkdir(parents=True, exist_ok=True)
    sources = {
        "vae": "vae/vae",
        "text_a": "clip/text_a",
        "text_b": "clip/text_b",
        "structure": f"{structure}/unet",
        "texture": f"{texture}/unet",
    }
    for name, source in sources.items():
        verify(runs / f"{source}.safetensors")
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(runs / f"{source}{suffix}", out / f"{name}{suffix}")
    for tower in model.towers:
        shutil.copyfile(runs / "clip" / shelf.tokenizer_of(tower), out / shelf.tokenizer_of(tower))
    write_atomically(out / "model.json", (json.dumps(dump(model), indent=2, ensure_ascii=False) + "\n").encode())
    shelf.check(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB, intact")
