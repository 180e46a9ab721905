"""A model folder as a diffusers folder, for those who go on there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mindpangu import zoo
from mindpangu.checkpoint.diffusers import (
    diffusers_places,
    stem_of,
    unet_config,
    vae_config,
)
from mindpangu.checkpoint.name_map import Place
from mindpangu.checkpoint.store import load_tensors, save_tensors, write_atomically
from mindpangu.checkpoint.transformers import text_config
from mindpangu.convert.writer import Said, check_room
from mindpangu.errors import UserError
from mindpangu.models.inventory import parts, spec_of
from mindpangu.spec import TEXT_ENCODERS, TOKENIZERS, ModelSpec
from mindpangu.text.tokenizer import END_B, START_B

PIPELINES = {"none": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
REFINER = "StableDiffusionXLImg2ImgPipeline"
TORCH_METADATA = {"format": "pt"}  # without it transformers refuses a file


def export_diffusers(folder: Path, out: Path, said: Said = lambda line: None) -> None:
    """Write `out`: every net of the model in `folder` with its config.json, CLIP's tokenizers, the scheduler.

    The dtype stays as stored. A model of several UNets (PanGu-Draw) has each under its own name, and no
    model_index.json, since diffusers has no pipeline for it.

    Raises:
        UserError: the model has a part that diffusers has no class for; the disk is too small.
    """
    spec = spec_of(folder)
    if spec.vae.patch != 1 or len(spec.vae.scale) != 1 or any(spec.vae.shift):
        raise UserError(
            f"{folder}: diffusers has no class for its autoencoder (pixel-unshuffle stem {spec.vae.patch}, "
            f"{len(spec.vae.scale)} scales); only autoencoders of Stable Diffusion's layout can be written"
        )
    shapes = parts(spec)
    places = diffusers_places(spec, shapes)
    check_room(out, sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    for part in shapes:
        said(part)
        to, stem = out / part, stem_of(part)
        tensors = load_tensors(zoo.part_path(folder, part))
        save_tensors(to / f"{stem}.safetensors", _theirs(places[part], tensors, part == "vae"), TORCH_METADATA)
        _write(to / "config.json", _config(spec, part))
    for part in spec.texts:
        tokenizer = Tokenizer.from_file(str(zoo.tokenizer_path(folder, part)))
        if tokenizer.token_to_id(START_B) is None:
            _write_bert_tokenizer(out / TOKENIZERS[part], tokenizer)
        else:
            _write_clip_tokenizer(out / TOKENIZERS[part], tokenizer, spec.texts[part].pad_id)
    _write(out / "scheduler" / "scheduler_config.json", _scheduler(spec))
    index = _model_index(spec)
    if index:
        _write(out / "model_index.json", index)


def _theirs(
    places: Mapping[str, Place], tensors: Mapping[str, np.ndarray], dense_attention: bool
) -> dict[str, np.ndarray]:
    """Their tensors; an autoencoder's attention has dense layers where ours has 1×1 convolutions."""
    theirs: dict[str, np.ndarray] = {}
    for name, place in places.items():
        value = tensors[name]
        squeezed = value.shape[:2] if dense_attention and ".attn_1." in name and value.ndim == 4 else None
        theirs.update(place.write(value, squeezed))
    return theirs


def _config(spec: ModelSpec, part: str) -> dict[str, Any]:
    values = asdict(spec.parts[part])
    if part == "vae":
        return vae_config(values)
    if part in spec.texts:
        return text_config(values)
    return unet_config(values, spec.pipeline.added_cond, spec.pipeline.size_dim)


def _scheduler(spec: ModelSpec) -> dict[str, Any]:
    """Euler with our uniform levels."""
    schedule = spec.pipeline.schedule
    return {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": schedule.steps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.kind,
        "prediction_type": {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[spec.pipeline.prediction],
        "timestep_spacing": "linspace",
        **({"rescale_betas_zero_snr": True} if schedule.zero_terminal_snr else {}),
    }


def _model_index(spec: ModelSpec) -> dict[str, Any]:
    added_cond = spec.pipeline.added_cond
    if added_cond == "index":
        return {}
    index: dict[str, Any] = {
        "_class_name": PIPELINES.get(added_cond, REFINER),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    for part in TEXT_ENCODERS:
        there = part in spec.texts
        if there or added_cond != "none":
            kind = text_config(asdict(spec.texts[part]))["architectures"][0] if there else None
            index[part] = ["transformers", kind] if there else [None, None]
            reader = "BertTokenizer" if there and spec.texts[part].output == "bert" else "CLIPTokenizer"
            index[TOKENIZERS[part]] = ["transformers", reader] if there else [None, None]
    if added_cond == "none":
        index.update(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)
    else:
        index["force_zeros_for_empty_prompt"] = False
        if added_cond == "refiner":
            index["requires_aesthetics_score"] = True
    return index


def _write_bert_tokenizer(to: Path, tokenizer: Tokenizer) -> None:
    """vocab.txt and tokenizer_config.json."""
    ids = tokenizer.get_vocab()
    write_atomically(to / "vocab.txt", ("\n".join(sorted(ids, key=ids.__getitem__)) + "\n").encode())
    _write(to / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})


def _write_clip_tokenizer(to: Path, tokenizer: Tokenizer, pad_id: int) -> None:
    """vocab.json, merges.txt and tokenizer_config.json."""
    model = json.loads(tokenizer.to_str())["model"]
    _write(to / "vocab.json", model["vocab"])
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_atomically(to / "merges.txt", ("#version: 0.2\n" + "\n".join(pairs) + "\n").encode())
    _write(
        to / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": START_B,
            "eos_token": END_B,
            "unk_token": END_B,
            "pad_token": tokenizer.id_to_token(pad_id),
            "model_max_length": 77,
        },
    )


def _write(path: Path, values: Any) -> None:
    write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
