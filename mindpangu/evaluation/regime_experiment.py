"""The comparison of training regimes (docs/regimes.md): which trainings make which models, and what each has cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from mindpangu.checkpoint.store import load_tensors, read_card, save_checkpoint, write_atomically
from mindpangu.config import load
from mindpangu.cost.flops import BACKWARD, unet_flops
from mindpangu.data.examples import Examples
from mindpangu.evaluation.comparison import COLUMNS, recipes, table
from mindpangu.images import parse_size
from mindpangu.models.loading import read_spec
from mindpangu.spec import TEXT_ENCODERS, VAESpec
from mindpangu.train.config import TrainConfig
from mindpangu.train.diffusion import text_encoder_specs

Run = Callable[[Sequence[str]], None]  # runs `mindpangu` with these arguments


@dataclass(frozen=True)
class Training:
    """A training file of the experiment, the training whose net it begins with, and what is set over the file."""

    config: str
    start_from: Optional[str] = None
    changes: tuple[str, ...] = ()


LARGE = ("data.min_side=128",)
DOUBLE = ("diffusion.unet.model_channels=48",)  # about twice the parameters
COST = ("runner_config.images=54400",)  # at 128×128 as many FLOPs as both experts together

TRAININGS = {
    "common": Training("common"),
    "structure": Training("structure", "common"),
    "texture": Training("texture", "common"),
    "continued": Training("continued", "common"),
    "low_double": Training("low", None, DOUBLE),
    "boost_double": Training("boost", "low_double", DOUBLE),
    "low": Training("low"),
    "boost": Training("boost", "low", COST),
    "structure_large": Training("structure", "low", LARGE),
    "texture_large": Training("texture", "low"),
    "structure_500": Training("structure", "common", ("diffusion.t_min=500",)),
    "texture_500": Training("texture", "common", ("diffusion.t_max=500",)),
}
REGIMES: dict[str, dict[str, str]] = {  # {model: {part: training}}
    "time_decoupled": {"structure": "structure", "texture": "texture"},
    "boost_double": {"unet": "boost_double"},
    "continued": {"unet": "continued"},
    "time_decoupled_large": {"structure": "structure_large", "texture": "texture_large"},
    "boost": {"unet": "boost"},
}
# Of the first seed alone: experts whose ranges of t do not overlap.
ONCE = {"no_overlap": {"structure": "structure_500", "texture": "texture_500"}}
MERGED = {"merged_half": 0.5, "merged_full": 1.0}  # {model: the share of both experts' updates that its one net has}
MODELS = {**REGIMES, **ONCE, **dict.fromkeys(MERGED, REGIMES["time_decoupled"])}  # {model: {part: training}}
COSTS = {"parameters": ("M parameters", 1), "pictures": ("pictures used", 0), "tflop": ("training, TFLOP", 0)}


@dataclass(frozen=True)
class Regimes:
    """`configs`: the training files; `runs`: where trainings and models go; `parts`: a model folder, whose autoencoder
    and text encoders all of them use; `data`: what they train on."""

    configs: Path
    runs: Path
    parts: Path
    data: Path
    seeds: Sequence[int]

    def carry_out(self, run: Run) -> None:
        """Every training, which goes on where it stopped, and every model, packed once."""
        for seed in self.seeds:
            wanted = {**REGIMES, **(ONCE if seed == min(self.seeds) else {})}
            for training in self.needed(net for nets in wanted.values() for net in nets.values()):
                if not self.net(training, seed).exists():
                    run(self.training(training, seed))
            for model, nets in wanted.items():
                self._pack(f"{model}-{seed}", {part: self.net(name, seed) for part, name in nets.items()}, run)
            for model, share in MERGED.items():
                self._merge(f"{model}-{seed}", seed, share, run)

    @staticmethod
    def needed(trainings: Iterable[str]) -> list[str]:
        """Trainings and those that they begin with, each once, in order."""
        found: dict[str, None] = {}
        for name in trainings:
            chain = [name]
            while (before := TRAININGS[chain[0]].start_from) is not None:
                chain.insert(0, before)
            found.update(dict.fromkeys(chain))
        return list(found)

    def training(self, name: str, seed: int) -> list[str]:
        """The arguments of a training."""
        return ["train", "--config", str(self._file(name)), *_each("--set", self._changes(name, seed))]

    def net(self, name: str, seed: int) -> Path:
        """What a training exports."""
        return self.runs / f"{name}-{seed}" / "unet.safetensors"

    def models(self) -> list[Path]:
        """The folders of the packed models, regime by regime."""
        named = [
            self.runs / "models" / f"{model}-{seed}" for model in (*REGIMES, *MERGED, *ONCE) for seed in self.seeds
        ]
        return [folder for folder in named if folder.exists()]

    def costs(self, model: str, seed: int) -> dict[str, float]:
        """Of a regime's nets: millions of parameters, pictures that any of them saw, FLOPs of all trainings (10¹²)."""
        nets = MODELS[model]
        trainings = [self._config(name, seed) for name in self.needed(nets.values())]
        of_each = [sum(t.size for t in load_tensors(self.net(name, seed)).values()) for name in nets.values()]
        seen = {r.file for c in trainings if c.data is not None for r in Examples(c.data).records}
        return {
            "parameters": (of_each[0] if model in MERGED else sum(of_each)) / 1e6,
            "pictures": float(len(seen)),
            "tflop": sum(map(total_flops, trainings)) / 1e12,
        }

    def report(self, out: Path) -> None:
        """Into the folder of a comparison: table.md again, with what each regime costs, and losses.png."""
        figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))["rows"]
        rows = {}
        for name, one in figures.items():
            model, _, seed = name.rpartition("-")
            rows[name] = {**self.costs(model, int(seed)), **one}
        write_atomically(out / "table.md", (table(rows, {**COSTS, **COLUMNS}) + "\n").encode())
        plot(figures, out / "losses.png")

    def _file(self, name: str) -> Path:
        return self.configs / f"{TRAININGS[name].config}.yaml"

    def _changes(self, name: str, seed: int) -> tuple[str, ...]:
        one = TRAININGS[name]
        common = (f"data.folder={self.data}", f"diffusion.vae={self.parts}", f"diffusion.text={self.parts}")
        first = () if one.start_from is None else (f"load_checkpoint={self.net(one.start_from, seed)}",)
        return (f"output_dir={self.net(name, seed).parent}", f"context.seed={seed}", *common, *one.changes, *first)

    def _config(self, name: str, seed: int) -> TrainConfig:
        return load(self._file(name), TrainConfig, self._changes(name, seed))

    def _merge(self, model: str, seed: int, share: float, run: Run) -> None:
        """A model of one net that has both experts' updates of the common net (DeMe, arXiv 2410.06664)."""
        path = self.runs / model / "unet.safetensors"
        if not path.exists():
            experts = [self.net(name, seed) for name in REGIMES["time_decoupled"].values()]
            found = merged(load_tensors(self.net("common", seed)), [load_tensors(one) for one in experts], share)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint(path, found, {**read_card(experts[0]), "merged": share})
        self._pack(model, {"unet": path}, run)

    def _pack(self, name: str, nets: Mapping[str, Path], run: Run) -> None:
        out = self.runs / "models" / name
        if not out.exists():
            given = {part: self.parts / part for part in ("vae", *TEXT_ENCODERS)}
            given.update({part: path.with_suffix("") for part, path in nets.items()})
            spec = ["--spec", str(self.configs / "model.yaml"), "--out", str(out)]
            experts = [] if "unet" in nets else ["--set", "experts={structure: 500, texture: 0}"]
            run(["zoo", "pack", *spec, *experts, *_each("--part", [f"{part}={path}" for part, path in given.items()])])


def merged(base: Mapping[str, Any], experts: Sequence[Mapping[str, Any]], share: float) -> dict[str, np.ndarray]:
    """base + share · Σ (expert − base), of nets of one shape; stored as the base is."""
    found = {}
    for name, value in base.items():
        start = value.astype(np.float32)
        found[name] = (start + share * sum(one[name].astype(np.float32) - start for one in experts)).astype(value.dtype)
    return found


def total_flops(config: TrainConfig) -> float:
    """FLOPs of a net's matrix products over a whole training, gradients included."""
    task = config.diffusion
    assert task is not None
    assert config.data is not None
    assert task.text is not None
    factor = read_spec(task.vae / "vae.safetensors", VAESpec).factor
    tokens = text_encoder_specs(task.text)[TEXT_ENCODERS[0]].context_length
    width, height = (side // factor for side in parse_size(config.data.sizes[0]))
    window = unet_flops(task.unet, task.crop_latents, task.crop_latents, tokens) if task.crop_share else 0
    a_picture = task.crop_share * window + (1 - task.crop_share) * unet_flops(task.unet, height, width, tokens)
    return (1 + BACKWARD) * config.runner_config.images * a_picture


def plot(figures: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The loss of each regime over t, as a share of the continued net's: pictures kept large, kept small, held out."""
    from matplotlib.figure import Figure

    found = {recipe: [figures[one]["losses"] for one in models] for recipe, models in recipes(figures).items()}
    means = {
        recipe: {key: np.mean([one[key] for one in losses], axis=0) for key in losses[0]}
        for recipe, losses in found.items()
    }
    base = next(name for name in means if name.startswith("continued"))
    kinds = {"large": "kept large", "small": "kept small", "heldout": "held out"}
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(kinds), sharey=True), kinds.items()):
        for recipe, of in means.items():
            bins = len(of[key])
            axes.plot((np.arange(bins) + 0.5) * 1000 / bins, of[key] / means[base][key], label=recipe, marker=".")
        axes.set_title(title)
        axes.set_xlabel("t")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"loss / that of {base}")
    figure.axes[0].set_ylim(0.6, 1.6)
    figure.axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
