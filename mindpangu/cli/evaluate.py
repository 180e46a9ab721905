"""`mindpangu eval`: measure a model against real pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import typer
from tqdm import tqdm

from mindpangu import zoo
from mindpangu.cli.generate import DEFAULT_MODEL

app = typer.Typer(help="Measure a model.", no_args_is_help=True)

DATA = typer.Option(Path("data/emoji"), help="Folder built by `mindpangu data emoji`.")
MODEL = typer.Option(DEFAULT_MODEL, help="Zoo name or model folder.")
GROUPS = typer.Option(
    "trained", help="What to ask for: trained, the groups that the model was trained on; all; or names, comma between."
)
COOP = Path("configs/infer/coop_text_line_quick.yaml")
REPORT = typer.Option(None, help="Also write the figures to this JSON file.")


def _open(data: Path, model: str, groups: str) -> tuple[Any, Any]:
    """The model, and all pictures in its styles, of which those of `groups` are asked for."""
    from mindpangu.infer.pipeline import PanGuDraw

    return PanGuDraw.from_pretrained(model), _pictures(data, model, groups)


def _pictures(data: Path, model: str, groups: str) -> Any:
    from mindpangu.evaluation.judge import Pictures

    folder = zoo.find(model)
    seen = trained_on(folder)
    styles = seen.get("styles") or zoo.description(folder).get("styles", ())
    asked = {"trained": seen.get("groups"), "all": None}.get(groups, groups.split(","))
    return Pictures.open(data, tuple(styles), tuple(asked) if asked else None)


def _galleries(pictures: Any, data: Path) -> Any:
    """The judge and what it sees in the real pictures, which stays beside them for the next run."""
    from mindpangu.evaluation.judge import Galleries
    from mindpangu.metrics.features import Judge

    return Galleries(pictures, Judge(), data / "judge.safetensors")


def trained_on(folder: Path) -> dict[str, Any]:
    """What the sidecar of a model's first UNet says of the training data: styles, groups (None: all), …"""
    from mindpangu.checkpoint.store import read_card

    expert = next(iter(zoo.description(folder).get("experts", [])))
    return read_card(folder / f"{expert}.safetensors").get("config", {}).get("data") or {}


def _drawer(pipeline: Any, bar: tqdm, options: Mapping[str, Any], blank: Optional[list[bool]] = None) -> Any:
    """draw(prompts) -> pictures; notes in `blank` which of them show nothing."""
    from mindpangu.evaluation.judge import is_blank

    def progress(done: int, total: int) -> None:
        bar.total, bar.n = total, done
        bar.refresh()

    def draw(prompts: Sequence[str]) -> list[np.ndarray]:
        pictures = [np.asarray(drawing.image) for drawing in pipeline(prompts, progress=progress, **options)]
        if blank is not None:
            blank.extend(map(is_blank, pictures))
        return pictures

    return draw


def _report(figures: dict[str, Any], path: Optional[Path]) -> None:
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    print(text)
    if path is not None:
        from mindpangu.checkpoint.store import write_atomically

        write_atomically(path, (text + "\n").encode())


@app.callback()
def evaluate() -> None:
    """Measure a model."""


@app.command()
def vae(data: Path = DATA, model: str = MODEL, groups: str = GROUPS, report: Optional[Path] = REPORT) -> None:
    """PSNR of the autoencoder's round trip on held-out pictures."""
    from mindpangu.evaluation.judge import vae_fidelity

    pipeline, pictures = _open(data, model, groups)
    _report({split: vae_fidelity(pipeline, pictures, split) for split in ("heldout", "train")}, report)


@app.command()
def coop(
    config: Path = typer.Option(COOP, help="The recipe; see docs/coop.md."),
    data: Path = DATA,
    groups: str = GROUPS,
    count: int = typer.Option(64, help="Prompts, each with a real picture's lines; a quarter with another thing's."),
    seeds: int = typer.Option(3, help="Each drawn so many times."),
    steps: int = typer.Option(30),
    bound: Optional[Path] = typer.Option(None, help="A recipe of the output's model alone, with its own ControlNet."),
    only: list[str] = typer.Option([], help="One way of drawing by its name in the table; may be repeated."),
    out: Path = typer.Option(Path("out/eval-coop"), help="Folder for figures and pictures; a second run goes on."),
) -> None:
    """Words of one model, lines of another: Coop-Diffusion beside its members and what else one might do."""
    from mindpangu.cli.generate import check_writable
    from mindpangu.config import load
    from mindpangu.errors import UserError
    from mindpangu.evaluation.coop_experiment import Experiment, shown, table
    from mindpangu.evaluation.found import Found, strip
    from mindpangu.infer.coop import CoopConfig

    check_writable(out)
    recipe = load(config, CoopConfig)
    pipeline, pictures = _open(data, recipe.members[recipe.output].model, groups)
    experiment = Experiment(config, pictures, _galleries(pictures, data), pipeline, count, steps, bound)
    ways = experiment.ways
    unknown = [name for name in only if name not in ways]
    if unknown:
        raise UserError(f"--only {', '.join(unknown)}: there are {', '.join(ways)}")
    found = Found.open(out, {**experiment.settings, "seeds": seeds})
    picked = shown(experiment.cases, 12)
    drawings = strip([np.asarray(experiment.cases[i].drawing) for i in picked])
    for name in only or ways:
        if name in found.figures:
            continue
        with tqdm(total=seeds * count, desc=name, unit="picture") as bar:
            figures, drawn = experiment.measure(ways[name](), seeds, bar)
        found.add(name, figures, strip([drawn[i] for i in picked]))
        present = [one for one in ways if one in found.figures]
        found.write(present, table({one: found.figures[one] for one in present}), [drawings])
    print((out / "table.md").read_text(encoding="utf-8"), end="")


@app.command()
def text(
    model: str = typer.Option(DEFAULT_MODEL, help="Zoo name, model folder, or a training's folder of text encoders."),
    report: Optional[Path] = REPORT,
) -> None:
    """Names found by natural prompts, by text features alone: what text encoders know before a generator is trained."""
    from mindpangu import runtime
    from mindpangu.evaluation.text_encoders import name_recall
    from mindpangu.spec import TEXT_ENCODERS

    folder = Path(model)
    if not zoo.part_path(folder, TEXT_ENCODERS[0]).is_file():
        folder = zoo.find(model)
    runtime.start()
    encoders = [encoder for encoder in TEXT_ENCODERS if zoo.part_path(folder, encoder).is_file()]
    _report(name_recall(folder, encoders), report)


@app.command()
def regimes(
    configs: Path = typer.Option(Path("configs/regimes"), help="The training files."),
    runs: Path = typer.Option(Path("runs/regimes"), help="Folder for trainings and models; a second run goes on."),
    data: Path = typer.Option(Path("data/regimes"), help="What to train on: pictures of which some are small."),
    judged: Path = typer.Option(Path("data/regimes_full"), help="The same pictures, all large, to judge by."),
    model: str = typer.Option(DEFAULT_MODEL, help="Whose autoencoder and text encoders all of them use."),
    seeds: int = typer.Option(3, help="Every net is trained so many times."),
    out: Path = typer.Option(Path("out/regimes"), help="Folder for figures, table.md, losses.png and grid.png."),
) -> None:
    """Train, pack and compare time-decoupled nets, resolution boost and one net (docs/regimes.md). Hours."""
    import subprocess

    from mindpangu.evaluation.regime_experiment import Regimes

    experiment = Regimes(configs, runs, zoo.find(model), data, range(seeds))

    def run(words: Sequence[str]) -> None:
        print(f"mindpangu {' '.join(words)}", flush=True)
        # A process each: what one training has compiled and allocated is gone for the next.
        done = subprocess.run(
            [sys.executable, "-c", "from mindpangu.cli.main import main; main()", *words], check=False
        )
        if done.returncode:
            raise typer.Exit(done.returncode)

    experiment.carry_out(run)
    models = [str(folder) for folder in experiment.models()]
    run(["eval", "compare", "--data", str(judged), "--trained-with", str(data), "--out", str(out), *models])
    experiment.report(out)
    print((out / "table.md").read_text(encoding="utf-8"), end="")


@app.command()
def compare(
    models: list[str] = typer.Argument(help="Model folders or zoo names; NAME-0, NAME-1, … are one row."),
    data: Path = DATA,
    trained_with: Optional[Path] = typer.Option(
        None, help="The data that they were trained on; pairs that are small there are also judged alone."
    ),
    groups: str = GROUPS,
    steps: int = typer.Option(30),
    seed: int = typer.Option(0),
    out: Path = typer.Option(Path("out/eval-compare"), help="Folder for figures and pictures; a second run goes on."),
) -> None:
    """Models beside one another: pictures that the first was trained on, asked for in both languages, and the loss."""
    from mindpangu.cli.generate import check_writable
    from mindpangu.data import manifest
    from mindpangu.evaluation.comparison import Comparison, recipes, table
    from mindpangu.evaluation.found import Found
    from mindpangu.evaluation.judge import SIDE
    from mindpangu.infer.pipeline import PanGuDraw

    check_writable(out)
    folders = {folder.resolve().name: folder for folder in map(zoo.find, models)}
    pictures = _pictures(data, models[0], groups)
    small = None
    if trained_with is not None:
        small = {r.file for r in manifest.read(trained_with) if r.size < SIDE}
    comparison = Comparison(pictures, _galleries(pictures, data), small)
    found = Found.open(out, {"pictures": len(comparison.prompts), "steps": steps, "seed": seed})
    for name, folder in folders.items():
        pipeline = PanGuDraw.from_pretrained(folder)
        if found.figures.get(name, {}).get("digest") == pipeline.digest:
            continue
        with tqdm(unit="step", desc=name) as bar:
            figures, drawn = comparison.measure(_drawer(pipeline, bar, {"steps": steps, "seed": seed}))
        losses = comparison.losses(pipeline)
        means = {f"loss_{of}": float(np.mean(values)) for of, values in losses.items()}
        of_model = {"digest": pipeline.digest, **figures, **means, "losses": losses}
        found.add(name, of_model, comparison.shown(drawn))
        present = {one: found.figures[one] for one in folders if one in found.figures}
        found.write([members[0] for members in recipes(present).values()], table(present))
    print((out / "table.md").read_text(encoding="utf-8"), end="")


@app.command()
def bridges(
    config: Path = typer.Option(COOP, help="A recipe with learned bridges."),
    data: Path = DATA,
    count: int = typer.Option(128, help="Held-out pictures in the output's styles."),
    report: Optional[Path] = REPORT,
) -> None:
    """Error, PSNR and time of a recipe's learned bridges, beside the image bridge's."""
    from mindpangu.config import load
    from mindpangu.evaluation.bridges import bridge_errors
    from mindpangu.infer.coop import CoopConfig, CoopDraw

    recipe = load(config, CoopConfig)
    host = recipe.members[recipe.output].model
    pipeline, pictures = _open(data, host, "all")
    together = CoopDraw(recipe, models={host: pipeline})
    asked = pictures.asked("heldout")[:count]
    _report(bridge_errors(together, [pictures.render(record) for record in asked]), report)


@app.command()
def noise_levels(
    data: Path = DATA,
    model: str = MODEL,
    groups: str = GROUPS,
    count: int = typer.Option(96, help="Trained pictures."),
    levels: int = typer.Option(8, help="Noise levels to begin from."),
    steps: int = typer.Option(16),
    seed: int = typer.Option(0),
    report: Optional[Path] = REPORT,
) -> None:
    """Real pictures noised to t and finished by the model: which expert loses them, and where T_struct belongs."""
    from mindpangu.evaluation.noise_levels import judge_noise_levels

    pipeline, pictures = _open(data, model, groups)
    found = judge_noise_levels(pipeline, pictures, _galleries(pictures, data), count, levels, steps, seed)
    _report({"model": model, "pictures": count, "steps": steps, "levels": list(tqdm(found, total=levels))}, report)


@app.command()
def judge(
    data: Path = DATA,
    model: str = MODEL,
    groups: str = GROUPS,
    pairs: int = typer.Option(100, help="(concept, style) pairs of each split."),
    compositions: int = typer.Option(60, help="Scenes with two pictures at stated places."),
    steps: int = typer.Option(30),
    guidance: Optional[float] = typer.Option(None),
    sampler: str = typer.Option("euler"),
    sigmas: str = typer.Option("uniform"),
    cache_interval: int = typer.Option(1),
    seed: int = typer.Option(0),
    report: Optional[Path] = REPORT,
) -> None:
    """Concept retrieval on trained and held-out pairs, in natural wording, in both languages, and compositions."""
    from mindpangu.evaluation.judge import judge_compositions, judge_counts, judge_natural, judge_pairs

    pipeline, pictures = _open(data, model, groups)
    galleries = _galleries(pictures, data)
    options = {
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "sigmas": sigmas,
        "cache_interval": cache_interval,
        "seed": seed,
    }
    figures: dict[str, Any] = {"model": model, "groups": pictures.groups, **options}
    blank: list[bool] = []  # of every picture that is drawn here
    with tqdm(unit="step", desc="drawing") as bar:
        draw = _drawer(pipeline, bar, options, blank)
        for split in ("train", "heldout"):
            figures[split] = judge_pairs(pipeline, pictures, galleries, split, pairs, seed, draw)
        figures["wording"] = judge_natural(pictures, galleries, draw)
        figures["compositions"] = judge_compositions(pictures, galleries.judge, compositions, seed, draw)
        figures["counts"] = judge_counts(pictures, galleries.judge, compositions, seed, draw)
    figures["blank"] = {"pictures": len(blank), "blank": sum(blank)}
    _report(figures, report)
