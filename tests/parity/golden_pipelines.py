"""Write golden/pipelines.npz: what diffusers' pipelines draw with narrow models of every family, which we export to it.

Run where the extra `bench` is installed: python -m tests.parity.golden_pipelines. The tests need the file alone.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Optional

import numpy as np
from tokenizers import Tokenizer

from mindpangu import runtime

runtime.start("CPU")

from mindpangu.checkpoint import ldm  # noqa: E402
from mindpangu.checkpoint.diffusers import diffusers_places, unet_config  # noqa: E402
from mindpangu.checkpoint.name_map import Place  # noqa: E402
from mindpangu.checkpoint.store import load_tensors, save_tensors  # noqa: E402
from mindpangu.convert.to_diffusers import export_diffusers  # noqa: E402
from mindpangu.convert.writer import ConversionOptions, write_model  # noqa: E402
from mindpangu.models.inventory import find_spec, parts, spec_of  # noqa: E402
from mindpangu.selftest.weights import draw, value_of  # noqa: E402
from mindpangu.spec import ControlNetSpec, ModelSpec  # noqa: E402
from mindpangu.text.vocabularies import clip_bpe  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "pipelines.npz"
FAMILIES = ("sd15", "sd21", "sdxl", "sdxl_refiner")
FROM_PICTURE = ("sdxl_refiner",)
WITH_LORA, LORAS = ("sd15", "sdxl"), {"kohya": 0.7, "peft": -0.4}
CONTROL = 0.8, 0.0, 0.6  # strength, start, end: theirs counts steps and ours levels, here the same two of four
REFINE_BELOW = 700
PROMPTS, NEGATIVE = ("a red bus, one", "一只狐狸"), "blurry"
SIZE, FACTOR, STEPS, GUIDANCE, SEED, STRENGTH = 64, 8, 4, 3.0, 5, 0.5
EVERY = 2  # pixels kept in the file, each way
SIZE_DIM, PROJECTION = 8, 16
WIDTHS = {"text_encoder": 32, "text_encoder_2": 48}


def narrow(family: str) -> ModelSpec:
    """The family's model with few channels and layers, and all of its structure."""
    spec = find_spec(family)
    added_cond = {"none": 0, "sdxl": 6, "refiner": 5}[spec.pipeline.added_cond]
    texts = {
        name: replace(text, width=WIDTHS[name], heads=2, layers=3, projection_dim=text.projection_dim and PROJECTION)
        for name, text in spec.texts.items()
    }
    unet = spec.unets["unet"]
    unet = replace(
        unet,
        model_channels=16,
        norm_groups=8,
        transformer_depth=tuple(min(2, depth) for depth in unet.transformer_depth),
        middle_depth=unet.middle_depth and min(2, unet.middle_depth),
        head_dim=8 if unet.head_dim else 0,
        context_dim=sum(text.width for text in texts.values()),
        vector_dim=added_cond and PROJECTION + added_cond * SIZE_DIM,
    )
    pipeline = replace(
        spec.pipeline, size_dim=added_cond and SIZE_DIM, default_size=f"{SIZE}x{SIZE}", sizes={f"{SIZE}x{SIZE}": 0}
    )
    return replace(
        spec, pipeline=pipeline, unets={"unet": unet}, texts=texts, vae=replace(spec.vae, channels=8, norm_groups=8)
    )


def build(spec: ModelSpec, out: Path, tokenizer: Optional[Tokenizer] = None) -> None:
    """A model folder whose weights are functions of diffusers' names; `tokenizer`: its text encoders', or CLIP's."""
    shapes = parts(spec)
    places = diffusers_places(spec, shapes)

    def read(part: str, name: str) -> np.ndarray:
        return value_of(places[part][name], shapes[part][name])

    tokenizers = dict.fromkeys(spec.texts, tokenizer or clip_bpe())
    write_model(spec, shapes, read, {}, out, ConversionOptions("fp32"), tokenizers, lambda line: None)


def single_file(folder: Path, path: Path) -> None:
    """The model of a folder as its family's single file."""
    spec, tensors = spec_of(folder), {}
    stable_diffusion_2 = spec.pipeline.name.startswith("sd2")
    prefixes = {"text_encoder_2": f"conditioner.embedders.{int('text_encoder' in spec.texts)}.model."}
    if stable_diffusion_2:
        prefixes["text_encoder"] = "cond_stage_model.model."
    elif spec.pipeline.added_cond == "none":
        prefixes["text_encoder"] = "cond_stage_model.transformer.text_model."
    else:
        prefixes["text_encoder"] = "conditioner.embedders.0.transformer.text_model."
    for part in spec.parts:
        weights = load_tensors(folder / f"{part}.safetensors")
        if part in spec.texts:
            places = ldm.text_encoder_places(weights, [prefixes[part] + "."])
        else:
            places = ldm.net_places(ldm.VAE if part == "vae" else ldm.UNET, weights)
        tensors.update(_joined(places, weights))
    if stable_diffusion_2:  # the file has one layer more than is used
        last = {n.replace(".2.", ".3."): v for n, v in tensors.items() if ".resblocks.2." in n}
        width = spec.texts["text_encoder"].width
        tensors.update(last)
        tensors["cond_stage_model.model.text_projection"] = draw("unused", (width, width))
    tensors["alphas_cumprod"] = np.ones(1000, np.float32)
    save_tensors(path, tensors, {"format": "pt"})


def _joined(places: dict[str, Place], weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors, thirds = {}, {}
    for name, place in places.items():
        if place.third is None:
            tensors.update(place.write(weights[name]))
        else:
            thirds.setdefault(place.names[0], {})[place.third] = weights[name]
    return {**tensors, **{name: np.concatenate([found[i] for i in range(3)]) for name, found in thirds.items()}}


def source_picture() -> np.ndarray:
    """(SIZE, SIZE, 3) uint8: a picture to start from."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([4 * x % 256, 4 * y % 256, (x // 8 + y // 8) % 2 * 200], -1).astype(np.uint8)


def control_tensors(spec: ModelSpec) -> dict[str, np.ndarray]:
    """A ControlNet for a model, in diffusers' names."""
    from mindpangu.checkpoint.diffusers import controlnet_places
    from mindpangu.models.inventory import shapes_of

    control = ControlNetSpec(spec.unets["unet"])
    shapes, tensors = shapes_of(control), {}
    for name, place in controlnet_places(spec, control, shapes).items():
        tensors.update(place.write(value_of(place, shapes[name])))
    return tensors


def draw_refined(base_folder: Path, refiner_folder: Path) -> np.ndarray:
    """SDXL down to t = 200, its refiner below."""
    import diffusers

    share = 1 - REFINE_BELOW / 1000
    base = diffusers.DiffusionPipeline.from_pretrained(base_folder)
    latents = draw_with(base, "sdxl", denoising_end=share, output_type="latent")
    refiner = diffusers.DiffusionPipeline.from_pretrained(refiner_folder)
    return draw_with(refiner, "sdxl_refiner", image=latents, denoising_start=share, strength=1.0)


def draw_controlled(theirs: Path, spec: ModelSpec, family: str) -> np.ndarray:
    """What diffusers draws with that ControlNet, looking at `source_picture`, at CONTROL's strength and range."""
    import diffusers
    import torch

    config = unet_config(asdict(spec.unets["unet"]), spec.pipeline.added_cond, SIZE_DIM)
    unused = ("out_channels", "up_block_types")
    options = {key: value for key, value in config.items() if key not in unused}
    net = diffusers.ControlNetModel.from_config({**options, "_class_name": "ControlNetModel"})
    net.load_state_dict({name: torch.from_numpy(value) for name, value in control_tensors(spec).items()})
    xl = "XL" if spec.pipeline.added_cond == "sdxl" else ""
    pipeline = getattr(diffusers, f"StableDiffusion{xl}ControlNetPipeline").from_pretrained(theirs, controlnet=net)
    picture = torch.from_numpy(source_picture()).permute(2, 0, 1)[None].float() / 255
    strength, start, end = CONTROL
    return draw_with(
        pipeline,
        family,
        image=picture.repeat(len(PROMPTS), 1, 1, 1),
        controlnet_conditioning_scale=strength,
        control_guidance_start=start,
        control_guidance_end=end,
    )


def lora_tensors(spec: ModelSpec, form: str) -> dict[str, np.ndarray]:
    """A LoRA of a model in a file's form: "kohya" with alpha, or "peft" with a convolution, on UNet and encoders."""
    shapes = parts(spec)
    places, tensors, rank = diffusers_places(spec, shapes), {}, 4
    prefixes = {
        "kohya": {"unet": "lora_unet_", "text_encoder": "lora_te1_" if "text_encoder_2" in spec.texts else "lora_te_"},
        "peft": {"unet": "unet.", "text_encoder": "text_encoder."},
    }[form]
    prefixes["text_encoder_2"] = {"kohya": "lora_te2_", "peft": "text_encoder_2."}[form]
    chosen = ("to_q", "to_v", "to_out.0", "ff.net.2", "q_proj", "out_proj", "fc1") + (
        ("conv1",) if form == "peft" else ()
    )
    for part in (*spec.unets, *spec.texts):
        for name, place in places[part].items():
            out, *rest = shapes[part][name]
            for theirs in place.names:
                module = theirs.removesuffix(".weight")
                if not (theirs.endswith(".weight") and module.endswith(chosen)):
                    continue
                down, up = (rank, *rest), (out // len(place.names), rank, *[1] * (len(rest) - 1))
                halves = {"kohya": (".lora_down", ".lora_up"), "peft": (".lora_A", ".lora_B")}[form]
                stem = prefixes[part] + (module.replace(".", "_") if form == "kohya" else module)
                tensors[f"{stem}{halves[0]}.weight"] = draw(f"{stem} down", down)
                tensors[f"{stem}{halves[1]}.weight"] = draw(f"{stem} up", up)
                if form == "kohya":
                    tensors[f"{stem}.alpha"] = np.array(3.0, np.float32)
    return tensors


def noise(prompt: str) -> np.ndarray:
    """What both sides start from, (4, h, w) float32."""
    digest = hashlib.sha256(prompt.encode()).digest()
    words = [int.from_bytes(digest[i : i + 4], "big") for i in range(0, 16, 4)]
    rng = np.random.default_rng([SEED, *words, 0, 0])
    return rng.standard_normal((4, SIZE // FACTOR, SIZE // FACTOR), np.float32)


def draw_with(pipeline, family: str, **more) -> np.ndarray:
    """(prompts, SIZE, SIZE, 3) float in [0, 1]."""
    import importlib

    import torch

    pipeline.set_progress_bar_config(disable=True)
    unit = torch.from_numpy(np.stack([noise(prompt) for prompt in PROMPTS]))
    options = {
        "prompt": list(PROMPTS),
        "negative_prompt": [NEGATIVE] * len(PROMPTS),
        "guidance_scale": GUIDANCE,
        "num_inference_steps": STEPS,
        "output_type": "np",
        **more,
    }
    if "denoising_start" in more:
        return pipeline(**options).images
    if family not in FROM_PICTURE:
        pipeline.scheduler.set_timesteps(STEPS)
        largest = float(pipeline.scheduler.sigmas[0])
        latents = unit * np.sqrt(1 + largest**2) / largest  # theirs starts at σ·noise, ours at √(1 + σ²)·noise
        return pipeline(**options, latents=latents, height=SIZE, width=SIZE).images
    importlib.import_module(type(pipeline).__module__).randn_tensor = lambda *_, **__: unit
    picture = torch.from_numpy(source_picture()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        known = pipeline.vae.encode(picture).latent_dist.mean * pipeline.vae.config.scaling_factor
    return pipeline(**options, image=known.repeat(len(PROMPTS), 1, 1, 1), strength=STRENGTH).images


def main() -> None:
    """Write the file. Every family is drawn from the exported folder, and once more from its single file."""
    import diffusers

    arrays = {}
    with tempfile.TemporaryDirectory() as temporary:
        for family in FAMILIES:
            ours, theirs, single = (Path(temporary) / family / name for name in ("ours", "theirs", "one.safetensors"))
            build(narrow(family), ours)
            export_diffusers(ours, theirs)
            pipeline = diffusers.DiffusionPipeline.from_pretrained(theirs)
            arrays[family] = draw_with(pipeline, family)
            single_file(ours, single)
            if family in WITH_LORA:
                arrays[f"{family}.control"] = draw_controlled(theirs, narrow(family), family)
                moved = np.abs(arrays[f"{family}.control"] - arrays[family]).mean()
                print(family, "control moves the picture by", moved)
                for form, scale in LORAS.items():
                    save_tensors(single.with_name(f"{form}.safetensors"), lora_tensors(narrow(family), form))
                    pipeline.load_lora_weights(single.parent, weight_name=f"{form}.safetensors", adapter_name=form)
                    pipeline.set_adapters([form], [scale])
                    arrays[f"{family}.{form}"] = draw_with(pipeline, family)
                pipeline.set_adapters(list(LORAS), list(LORAS.values()))
                arrays[f"{family}.both"] = draw_with(pipeline, family)
                for name in ("kohya", "peft", "both"):
                    moved = np.abs(arrays[f"{family}.{name}"] - arrays[family]).mean()
                    print(family, name, "moves the picture by", moved)
            again = draw_with(
                type(pipeline).from_single_file(str(single), config=str(theirs), local_files_only=True), family
            )
            print(family, arrays[family].shape, "single file differs by", np.abs(again - arrays[family]).max())
            np.testing.assert_allclose(again, arrays[family], atol=1e-5)
        base, refiner = (Path(temporary) / family / "theirs" for family in ("sdxl", "sdxl_refiner"))
        arrays["refined"] = draw_refined(base, refiner)
        print("refining moves the picture by", np.abs(arrays["refined"] - arrays["sdxl"]).mean())
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **{name: value[:, ::EVERY, ::EVERY] for name, value in arrays.items()})


if __name__ == "__main__":
    main()
