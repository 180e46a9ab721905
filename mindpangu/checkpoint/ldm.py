"""Places of our parameters in single files with ldm's and sgm's names: Stable Diffusion's and PanGu-Draw 3.0's."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from mindpangu.checkpoint.name_map import Place, Places, Shapes
from mindpangu.checkpoint.tensor_files import TensorFiles
from mindpangu.checkpoint.transformers import open_clip_name, torch_name
from mindpangu.errors import UserError
from mindpangu.spec import ModelSpec

UNET, VAE, CONTROL = "model.diffusion_model.", "first_stage_model.", "control_model."
# Where a CLIP text encoder stands, by how its parameters are named there.
CLIP = (
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.text_model.",
)
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model.")
# In the files, and in no Cell of ours: averages of the training, tables of the noise schedule, positions, CLIP's mask
# and temperature.
UNUSED = re.compile(
    r"^(model_ema\..*|v_pred|ztsnr|denoiser\.sigmas|betas|alphas_cumprod.*|sqrt_.*|log_one_minus.*|posterior_.*|logvar|lvlb_weights"
    r"|.*\.position_ids|.*\.attn_mask|.*\.logit_scale|cond_stage_model\..*\.text_projection(\.weight)?)$"
)

# Of the released PanGu-Draw 3.0 files: each holds one UNet, and all other parts.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.text_model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}

# In the files, and in no Cell: positions, the causal mask, the temperature of CLIP's training.
BUFFERS = (
    f"{PREFIXES['text_encoder']}embeddings.position_ids",
    f"{PREFIXES['text_encoder_2']}attn_mask",
    f"{PREFIXES['text_encoder_2']}logit_scale",
)


def net_places(prefix: str, names: Iterable[str]) -> dict[str, Place]:
    """Parameters of a UNet, an autoencoder or an encoder whose names are theirs."""
    return {name: Place((prefix + torch_name(name),)) for name in names}


def text_encoder_places(names: Collection[str], found: Collection[str]) -> dict[str, Place]:
    """Parameters of a text encoder among the names `found` in a file; {} where it holds none of that kind.

    An encoder named as in transformers ("last", "hidden") may be stored as OpenCLIP does (SD 2.x): query, key, value
    are then thirds of one tensor, and the file has layers that are not used.
    """
    open_clip = "text_projection" in names
    prefixes = OPEN_CLIP if open_clip else (*CLIP, *OPEN_CLIP)
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in found):
            if open_clip or prefix in CLIP:
                return net_places(prefix, names)
            return {name: _of_open_clip(prefix, name) for name in names}
    return {}


def ldm_places(spec: ModelSpec, shapes: Mapping[str, Shapes], found: TensorFiles) -> Places:
    """Every part's parameters in a single file's names.

    Raises:
        UserError: the file holds no text encoder of the kind that the model has.
    """
    places: Places = {"vae": net_places(VAE, shapes["vae"])}
    for name in spec.unets:
        places[name] = net_places(UNET, shapes[name])
    for name in spec.texts:
        places[name] = text_encoder_places(shapes[name], found.shapes)
        if not places[name]:
            raise UserError(
                f"{found.paths[0]}: holds no text encoder such as {spec.pipeline.name} has; is it the whole "
                "model, and not its UNet alone, or of another family?"
            )
    return places


def unused(name: str, layers: int) -> bool:
    """Whether a file's tensor is none of ours by right: also OpenCLIP's layers from number `layers` on, in SD 2.x."""
    layer = re.match(r"cond_stage_model\.model\.transformer\.resblocks\.(\d+)\.", name)
    return bool(UNUSED.match(name)) or (layer is not None and int(layer[1]) >= layers)


def _of_open_clip(prefix: str, name: str) -> Place:
    """transformers' name of an encoder's parameter in OpenCLIP's words."""
    packed = re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$", name)
    if packed:
        layer, which, leaf = packed.groups()
        return Place((f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{leaf}",), third="qkv".index(which))
    return Place((prefix + open_clip_name(torch_name(name)),))


def release_names(part: str, names: Iterable[str]) -> dict[str, str]:
    """{ours: theirs} for the parameters of one part: unet, vae, text_encoder or text_encoder_2."""
    return {name: PREFIXES[part] + name for name in names}
