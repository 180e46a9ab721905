"""What a model is made of, without its weights: specs, parameters by name and shape, sizes in bytes."""

from __future__ import annotations

from math import prod
from pathlib import Path

from mindpangu import configs, zoo
from mindpangu.config import load
from mindpangu.errors import UserError, nearest
from mindpangu.models.loading import load_model_spec, read_spec
from mindpangu.models.spec import ModelSpec, TextSpec, UNetSpec, VAESpec

Shapes = dict[str, tuple[int, ...]]
PARTS = ("structure", "texture", "vae", "text_a", "text_b")


def described() -> dict[str, Path]:
    """Models that are described in configs/model, by name."""
    folder = Path(configs.__file__).parent / "model"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_spec(name: str) -> ModelSpec:
    """The spec of a model: a name in configs/model, a YAML file of that form, a zoo name or a model folder.

    Raises:
        UserError: none of these.
    """
    known = described()
    if name in known or Path(name).suffix == ".yaml":
        return load(known.get(name, Path(name)), ModelSpec)
    if name not in zoo.names() and not (Path(name) / "model.json").is_file():
        names = [*known, *zoo.names()]
        raise UserError(
            f"model '{name}' is unknown; known: {', '.join(names)}; a model folder or a .yaml file is allowed too"
            f"{nearest(name, names)}"
        )
    folder = zoo.find(name)
    structure, texture, vae, text_a, text_b = (folder / f"{part}.safetensors" for part in PARTS)
    return ModelSpec(
        load_model_spec(folder),
        read_spec(structure, UNetSpec),
        read_spec(texture, UNetSpec),
        read_spec(vae, VAESpec),
        read_spec(text_a, TextSpec),
        read_spec(text_b, TextSpec),
    )


def parts(spec: ModelSpec) -> dict[str, Shapes]:
    """Parameters of each part, from Cells that hold no weights."""
    from mindspore.nn.utils import no_init_parameters

    from mindpangu.models.clip import text_tower
    from mindpangu.models.unet import UNet
    from mindpangu.models.vae import AutoencoderKL

    shapes: dict[str, Shapes] = {}
    with no_init_parameters():
        for name, make in (
            ("structure", lambda: UNet(spec.structure)),
            ("texture", lambda: UNet(spec.texture)),
            ("vae", lambda: AutoencoderKL(spec.vae)),
            ("text_a", lambda: text_tower(spec.text_a)),
            ("text_b", lambda: text_tower(spec.text_b)),
        ):
            shapes[name] = {p.name: tuple(p.shape) for p in make().get_parameters()}
    return shapes


def parameters(shapes: Shapes) -> int:
    """How many numbers."""
    return sum(prod(shape) for shape in shapes.values())
