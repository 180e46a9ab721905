"""`mindpangu generate`: pictures from prompts."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer
from tqdm import tqdm

from mindpangu import runtime, zoo
from mindpangu.diffusion import SAMPLERS
from mindpangu.errors import UserError

if TYPE_CHECKING:
    from mindpangu.infer.control import Control
    from mindpangu.infer.init_image import InitImage

DEFAULT_MODEL = "emoji-128"
CONTROL_OPTIONS = ("strength", "start", "end")


def parse_styles(texts: list[str]) -> dict[str, float]:
    """["fluent_3d=2", "noto"] -> {"fluent_3d": 2.0, "noto": 1.0}.

    Raises:
        UserError: a weight that is not a number.
    """
    styles = {}
    for text in texts:
        name, sign, weight = text.partition("=")
        try:
            styles[name.strip()] = float(weight) if sign else 1.0
        except ValueError:
            raise UserError(f"--style {text}: use name=weight, for example --style fluent_3d=2") from None
    return styles


def parse_loras(texts: list[str]) -> list[tuple[Path, float]]:
    """["a.safetensors=0.8", "b.safetensors"] -> [(Path, 0.8), (Path, 1.0)].

    Raises:
        UserError: a scale that is not a finite number.
    """
    loras = []
    for text in texts:
        name, sign, scale = text.rpartition("=")
        try:
            number = float(scale) if sign else 1.0
        except ValueError:  # the sign is part of a file's name, or the scale is none
            name, sign, number = "", "", 1.0 if Path(text).exists() else math.nan
        if not math.isfinite(number):
            raise UserError(f"--lora {text}: use file=scale, for example --lora ink.safetensors=0.8")
        loras.append((Path(name if sign else text), number))
    return loras


def parse_control(text: str) -> tuple[Path, Path, dict[str, Any]]:
    """ "canny=edges.png,strength=0.8,end=0.6" -> (folder, picture, options of `Control`).

    Raises:
        UserError: not of that form.
    """
    (where, *options) = text.split(",")
    folder, sign, picture = where.partition("=")
    pairs = [option.partition("=") for option in options]
    try:
        if not (sign and folder and picture) or any(key not in CONTROL_OPTIONS for key, _, _ in pairs):
            raise ValueError
        return Path(folder), Path(picture), {key: float(value) for key, _, value in pairs}
    except ValueError:
        raise UserError(
            f"--control {text}: use FOLDER=PICTURE, and after commas {', '.join(CONTROL_OPTIONS)}, for example "
            "canny=edges.png,strength=0.8,end=0.6"
        ) from None


def check_writable(folder: Path) -> None:
    """Find out whether `folder` can be made and written, before any time is spent; nothing is made.

    Raises:
        UserError: it cannot.
    """
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None


@contextmanager
def steps_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar of sampling steps, as progress(done, total)."""
    with tqdm(total=1, desc="drawing", unit="step") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def asked_sides(size: str) -> tuple[int, int]:
    """Width and height of "WxH". Raises: UserError."""
    from mindpangu.images import parse_size

    try:
        return parse_size(size)
    except ValueError as error:
        raise UserError(str(error)) from None


def open_init_image(init: Optional[Path], mask: Optional[Path], sides: tuple[int, int]) -> Optional[InitImage]:
    """The files of --init and --mask at (width, height). Raises: UserError."""
    if init is None:
        if mask is not None:
            raise UserError("--mask needs --init, the picture that it belongs to")
        return None
    from mindpangu.infer.init_image import InitImage

    return InitImage.open(init, mask, sides)


def open_controls(wanted: list[tuple[Path, Path, dict[str, Any]]], sides: tuple[int, int]) -> tuple[Control, ...]:
    """The ControlNets of --control, their pictures at (width, height). Raises: UserError."""
    from mindpangu.infer.control import Control, control_net

    return tuple(Control.open(control_net(folder), [picture], sides, **options) for folder, picture, options in wanted)


def generate(
    prompts: Optional[list[str]] = typer.Argument(
        None, help="What to draw, in English or Chinese; several prompts, several pictures."
    ),
    like: Optional[Path] = typer.Option(
        None,
        help="A picture of ours to draw again, bit for bit; other options than --out, --model, --device are its own.",
    ),
    size: Optional[str] = typer.Option(None, help="WIDTHxHEIGHT in pixels, one of the model's sizes."),
    steps: int = typer.Option(30, help="Sampling steps."),
    guidance: Optional[float] = typer.Option(None, help="Scale of classifier-free guidance (1: none)."),
    style: list[str] = typer.Option([], help="name=weight: guide towards a style; may be repeated."),
    negative: str = typer.Option("", help="Negative prompt."),
    seed: list[int] = typer.Option(
        [0],
        help="Of each prompt's first picture, then seed + 1, …; -1: a new one; may be repeated: one for each picture.",
    ),
    n: int = typer.Option(1, help="Pictures a prompt."),
    batch: int = typer.Option(8, help="Pictures drawn together; fewer need less memory."),
    sampler: str = typer.Option("euler", help=f"{', '.join(SAMPLERS)}."),
    sigmas: str = typer.Option("uniform", help="Noise levels: uniform (in t) or karras."),
    cache_interval: int = typer.Option(1, help="Compute the nets' deep features every so many steps: faster, coarser."),
    init: Optional[Path] = typer.Option(None, help="A picture to start from instead of noise."),
    strength: float = typer.Option(0.6, help="How far from --init to go: 1 is all the way."),
    mask: Optional[Path] = typer.Option(None, help="Draw anew only where this picture is light; needs --init."),
    lora: list[str] = typer.Option([], help="file.safetensors=scale: merge a LoRA (kohya, PEFT); may be repeated."),
    control: list[str] = typer.Option(
        [],
        help="FOLDER=PICTURE[,strength=1][,start=0][,end=1]: a ControlNet (see convert) looks at it; may be repeated.",
    ),
    guidance_start: float = typer.Option(0.0, help="Use guidance from this part of the sampling on, 0 to 1."),
    guidance_end: float = typer.Option(1.0, help="Use guidance up to this part of the sampling."),
    rescale: float = typer.Option(0.0, help="Pull the guided picture's contrast back: 0 not at all, 1 wholly."),
    refiner: Optional[str] = typer.Option(None, help="A second model of the same latents, for the last noise levels."),
    refine_below: int = typer.Option(200, help="The refiner draws at t below this."),
    lag: bool = typer.Option(False, "--lag", help="Switch the nets one step late, as the released code does."),
    out: Path = typer.Option(Path("out"), help="Folder for the pictures."),
    grid: bool = typer.Option(False, "--grid", help="Also write a captioned contact sheet, grid.png."),
    model: str = typer.Option(DEFAULT_MODEL, help="Zoo name or model folder."),
    offload: bool = typer.Option(False, "--offload", help="Keep only the UNet in use in memory."),
    dtype: str = typer.Option("auto", help="Weights in memory: fp32, fp16, or auto: fp32 on a CPU, 16 bits on Ascend."),
    vae_tile: Optional[int] = typer.Option(None, help="Decode in tiles of so many pixels a side: less memory, slower."),
    device: str = typer.Option("auto", help="auto, CPU or Ascend."),
) -> None:
    """Draw pictures from prompts."""
    given, started = dict(locals()), time.monotonic()
    if like is not None:
        if prompts:
            raise UserError("--like draws the picture's own prompt; leave the prompts out")
        check_writable(out)
        print(_redrawn(like, model, device, out))
        return
    prompts = prompts or []
    styles, loras, wanted = parse_styles(style), parse_loras(lora), [parse_control(text) for text in control]
    check_writable(out)
    from mindpangu.infer.image_file import save_drawings
    from mindpangu.infer.pipeline import PanGuDraw
    from mindpangu.infer.request import OPTION_NAMES

    pipeline = PanGuDraw.from_pretrained(model, device, offload, dtype)
    if loras:
        pipeline.set_loras(loras)
    second = None if refiner is None else PanGuDraw.from_pretrained(refiner, device, offload, dtype)
    sides = asked_sides(size or pipeline.spec.default_size)
    init_image, controls = open_init_image(init, mask, sides), open_controls(wanted, sides)
    options = {name: given[name] for name in OPTION_NAMES if name in given}
    request = pipeline.asked(
        prompts,
        **{**options, "styles": styles or None},
        seed=seed[0] if len(seed) == 1 else seed,
        n=n,
        batch=batch,
        vae_tile=vae_tile,
        init_image=init_image,
        controls=controls,
        refiner=second,
        refine_below=refine_below,
    )
    kept = runtime.kept_graphs(zoo.fingerprint(zoo.find(model)), pipeline.spec, dtype, request.graph_key)
    with kept, steps_bar() as progress:
        count, where = save_drawings(pipeline.draw(request, progress), out, grid)
    print(f"{count} pictures in {time.monotonic() - started:.1f} s: {where}")


def _redrawn(like: Path, model: str, device: str, out: Path) -> Path:
    from mindpangu.infer.image_file import own_settings, redraw, save_drawing
    from mindpangu.infer.pipeline import PanGuDraw

    settings = own_settings(like)
    drawing = redraw(PanGuDraw.from_pretrained(model, device), settings)
    target = out / f"{like.stem}.png"
    if target.exists():
        raise UserError(f"{target}: is there already; choose another --out")
    save_drawing(drawing, target)
    return target
