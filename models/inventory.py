"""What a model is made of, without its weights: specs, parameters by name and shape, sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Union

from mindspore import nn

from mindpangu import configs, zoo
from mindpangu.checkpoint.name_map import Shapes
from mindpangu.config import load
from mindpangu.errors import UserError, nearest
from mindpangu.models.clip import text_encoder
from mindpangu.models.controlnet import ControlNet
from mindpangu.models.loading import Spec, empty, load_model_spec, read_spec
from mindpangu.models.unet import UNet
from mindpangu.models.vae import AutoencoderKL
from mindpangu.spec import ControlNetSpec, ModelSpec, TextSpec, UNetSpec, VAESpec

NetSpec = Union[UNetSpec, VAESpec, TextSpec, ControlNetSpec]


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
    if name not in zoo.names() and not (Path(name) / zoo.DESCRIPTION).is_file():
        names = [*known, *zoo.names()]
        raise UserError(
            f"model '{name}' is unknown; known: {', '.join(names)}; a model folder or a .yaml file is allowed too"
            f"{nearest(name, names)}"
        )
    return spec_of(zoo.find(name))


def spec_of(folder: Path) -> ModelSpec:
    """The spec of the model in a folder. Raises: UserError."""
    pipeline = load_model_spec(folder)

    def of(parts: Iterable[str], kind: type[Spec]) -> dict[str, Spec]:
        return {part: read_spec(zoo.part_path(folder, part), kind) for part in parts}

    vae = read_spec(folder / "vae.safetensors", VAESpec)
    return ModelSpec(pipeline, of(pipeline.experts, UNetSpec), vae, of(pipeline.text_encoders, TextSpec))


def parts(spec: ModelSpec) -> dict[str, Shapes]:
    """Parameters of each part, from Cells that hold no weights."""
    return {name: shapes_of(one) for name, one in spec.parts.items()}


def shapes_of(spec: NetSpec) -> Shapes:
    """Parameters of a net, from a Cell that holds no weights."""
    return {p.name: tuple(p.shape) for p in empty(lambda: net_of(spec)).get_parameters()}


def net_of(spec: NetSpec) -> nn.Cell:
    """The Cell of a spec."""
    if isinstance(spec, UNetSpec):
        return UNet(spec)
    if isinstance(spec, ControlNetSpec):
        return ControlNet(spec)
    return AutoencoderKL(spec) if isinstance(spec, VAESpec) else text_encoder(spec)


def parameters(shapes: Shapes) -> int:
    """How many numbers."""
    return sum(prod(shape) for shape in shapes.values())
