"""What other people's files call the parts of a model and their parameters."""

from __future__ import annotations

from collections.abc import Mapping

from mindpangu.checkpoint import ldm
from mindpangu.checkpoint.diffusers import Vector, unet_places, vae_places
from mindpangu.checkpoint.name_map import Place, Shapes
from mindpangu.checkpoint.tensor_files import TensorFiles
from mindpangu.checkpoint.transformers import places_of
from mindpangu.errors import UserError
from mindpangu.spec import ControlNetSpec, ModelSpec

TEXT_ENCODERS = {"text_a": "text_encoder", "text_b": "text_encoder_2"}  # our names and diffusers'
TOKENIZERS = {"text_a": "tokenizer", "text_b": "tokenizer_2"}

Places = dict[str, dict[str, Place]]  # by part, then by parameter


def subfolder(part: str) -> str:
    """Where diffusers keeps a part: the text encoders under its names, others under their own."""
    return TEXT_ENCODERS.get(part, part)


def stem_of(part: str) -> str:
    """What a part's files are called there."""
    return "model" if part in TEXT_ENCODERS else "diffusion_pytorch_model"


def vector_of(spec: ModelSpec) -> Vector:
    """Where diffusers' UNets take the vector in."""
    return "class_embedding" if spec.pipeline.added_cond == "index" else "add_embedding"


def diffusers_places(spec: ModelSpec, shapes: Mapping[str, Shapes]) -> Places:
    """Every part's parameters in diffusers' and transformers' names."""
    vector = vector_of(spec)
    places: Places = {"vae": vae_places(shapes["vae"], len(spec.vae.channel_mult))}
    for name, unet in spec.unets.items():
        places[name] = unet_places(shapes[name], unet, vector)
    for name, text in spec.texts.items():
        places[name] = places_of(text.output)(shapes[name])
    return places


def controlnet_places(model: ModelSpec, spec: ControlNetSpec, shapes: Shapes) -> dict[str, Place]:
    """A ControlNet's parameters in diffusers' names."""
    return unet_places(shapes, spec.unet, vector_of(model), control=True)


def ldm_places(spec: ModelSpec, shapes: Mapping[str, Shapes], found: TensorFiles) -> Places:
    """Every part's parameters in a single file's names.

    Raises:
        UserError: the file holds no text encoder of the kind that the model has.
    """
    places: Places = {"vae": ldm.net_places(ldm.VAE, shapes["vae"])}
    for name in spec.unets:
        places[name] = ldm.net_places(ldm.UNET, shapes[name])
    for name in spec.texts:
        places[name] = ldm.text_encoder_places(shapes[name], found.shapes)
        if not places[name]:
            raise UserError(
                f"{found.paths[0]}: holds no text encoder such as {spec.pipeline.name} has; is it the whole "
                "model, and not its UNet alone, or of another family?"
            )
    return places
