"""Fine-tuning of a model of several UNets: a training for each, in its noise levels, and one LoRA file of all."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from mindpangu import zoo
from mindpangu.checkpoint.store import load_tensors, read_card, save_checkpoint
from mindpangu.errors import UserError
from mindpangu.models.loading import load_model_spec, read_spec
from mindpangu.spec import UNetSpec
from mindpangu.train.config import DiffusionConfig, FinetuneConfig, TrainConfig
from mindpangu.train.run import run

FILE = "lora.safetensors"
OWN = ("output_dir", "model", "encoded", "lora", "prior", "caption_dropout")  # the rest is each training's too


def finetune(config: FinetuneConfig) -> Path:
    """Train what is not trained yet, resuming where an earlier run stopped; the file, which `generate --lora` takes.

    Raises:
        UserError: see `trainings` and `run`.
    """
    parts = trainings(config)
    for training in parts.values():
        run(training)
    made = [training.output_dir / FILE for training in parts.values()]
    tensors = {name: value for path in made for name, value in load_tensors(path).items()}
    save_checkpoint(config.output_dir / FILE, tensors, {name: read_card(path) for name, path in zip(parts, made)})
    return config.output_dir / FILE


def trainings(config: FinetuneConfig) -> dict[str, TrainConfig]:
    """The training of each of the model's UNets, by its name, in the order in which they draw.

    Raises:
        UserError: no such model, or one whose added conditioning is not a size's index, which is what encoded data has.
    """
    folder = zoo.find(config.model)
    model = load_model_spec(folder)
    if not model.text_encoders or model.added_cond != "index":
        raise UserError(
            f"{config.model}: encoded data is of nets that know two text encoders and a size's index; its nets know "
            f"{' and '.join(model.text_encoders) or 'no words'}, and '{model.added_cond}'"
        )
    common = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in OWN}
    tops = [model.schedule.steps, *model.experts.values()]
    found: dict[str, TrainConfig] = {}
    for (name, lowest), top in zip(model.experts.items(), tops):
        lora = replace(config.lora, expert=name if len(model.experts) > 1 else None)
        if found and lora.text_encoders:
            lora = replace(lora, text_encoders=False, beside=next(iter(found.values())).output_dir / FILE)
        checkpoint = zoo.part_path(folder, name)
        diffusion = DiffusionConfig(
            unet=read_spec(checkpoint, UNetSpec),
            vae=folder,
            text=folder,
            sizes=tuple(sorted(model.sizes, key=model.sizes.__getitem__)),
            size_dim=model.size_dim,
            encoded=config.encoded,
            prior=config.prior,
            lora=lora,
            t_min=lowest,
            t_max=top,
            prediction=model.prediction,
            schedule=model.schedule,
            caption_dropout=config.caption_dropout,
        )
        found[name] = TrainConfig(
            output_dir=config.output_dir / name, load_checkpoint=checkpoint, diffusion=diffusion, **common
        )
    return found
