"""The comparison of training regimes (docs/regimes.md): which trainings make which models, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindpangu.spec import TEXT_ENCODERS


@dataclass(frozen=True)
class Regimes:
    """`configs`: the training files; `runs`: where trainings and models go; `parts`: a model folder, whose autoencoder
    and text encoders all of them use; `data`: what they train on; `switches`: T_struct of the time-decoupled ones."""

    configs: Path
    runs: Path
    parts: Path
    data: Path
    seeds: Sequence[int]
    switches: Sequence[int]

    def commands(self) -> Iterator[list[str]]:
        """Arguments of `mindpangu`, in order: of trainings, which go on where they stopped, and of packed models."""
        for seed in self.seeds:
            yield self._train("mono", f"mono-{seed}", seed)
            yield self._train("mono_large", f"mono_large-{seed}", seed)
            yield self._train("boost_low", f"boost_low-{seed}", seed)
            low = self.runs / f"boost_low-{seed}" / "unet.safetensors"
            yield self._train("boost", f"boost-{seed}", seed, f"load_checkpoint={low}")
            for name in ("mono", "mono_large", "boost"):
                yield from self._pack(f"{name}-{seed}", {"unet": f"{name}-{seed}"})
            for t in self.switches:
                nets = {part: f"{part}-{t}-{seed}" for part in ("structure", "texture")}
                yield self._train("structure", nets["structure"], seed, f"diffusion.t_min={t}")
                yield self._train("texture", nets["texture"], seed, f"diffusion.t_max={t}")
                yield from self._pack(f"t{t}-{seed}", nets, f"experts={{structure: {t}, texture: 0}}")

    @property
    def models(self) -> Path:
        """The folder of the packed models."""
        return self.runs / "models"

    def _train(self, config: str, name: str, seed: int, *changes: str) -> list[str]:
        common = (f"data.folder={self.data}", f"diffusion.vae={self.parts}", f"diffusion.text={self.parts}")
        changes = (f"output_dir={self.runs / name}", f"context.seed={seed}", *common, *changes)
        return ["train", "--config", str(self.configs / f"{config}.yaml"), *_each("--set", changes)]

    def _pack(self, name: str, nets: dict[str, str], *changes: str) -> Iterator[list[str]]:
        out = self.models / name
        if not out.exists():
            given = {part: self.parts / part for part in ("vae", *TEXT_ENCODERS)}
            given.update({part: self.runs / run / "unet" for part, run in nets.items()})
            spec = ["--spec", str(self.configs / "model.yaml"), "--out", str(out), *_each("--set", changes)]
            yield ["zoo", "pack", *spec, *_each("--part", [f"{part}={path}" for part, path in given.items()])]


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
