"""What a regime costs on a cluster: data, FLOPs, device-hours, memory, bubble. Computed, never run on an NPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from mindpangu.config import read_yaml
from mindpangu.cost.flops import BACKWARD, Layer, unet_flops, unet_layers
from mindpangu.data import manifest
from mindpangu.errors import UserError
from mindpangu.parallel.config import ClusterConfig
from mindpangu.parallel.network import collectives, seconds
from mindpangu.parallel.pipeline import Timeline, cut, simulate
from mindpangu.parallel.ranks import loads
from mindpangu.spec import ModelSpec, UNetSpec
from mindpangu.train.regimes import Histogram, Regime, Stage, histogram_of, widened

GIB = 2**30
SINGLE = 4  # bytes
KEPT = 3  # numbers a weight: AdamW's two moments and the average

ASSUMPTIONS = (
    "FLOPs are those of matrix products; the backward pass takes twice the forward's, recomputing once more",
    "latents and text features are made beforehand (the autoencoder and the text encoders cost nothing here)",
    "weights, gradients, AdamW's two moments, the average of the weights and activations in fp32, as our trainer has "
    "them, products in 16 bits; gradient_accumulation_steps takes the gradients once more",
    "the pipeline's schedule is 1F1B; sending between its stages takes no time that is not in the utilisation",
    "gradients are summed after the backward pass, and nothing is sent meanwhile; device-hours are without that time",
)


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class StagePlan:
    """A stage of a regime: pictures it can use, FLOPs in all, hours of one device, memory and bubble.

    A step computes for `step_seconds` and then sends for `sending_seconds`; on one server for `sending_within`.
    """

    stage: Stage
    parameters: int
    pictures: int
    share: float
    flops: float
    device_hours: float
    memory: Memory
    bubble: float
    step_seconds: float
    sending_seconds: float
    sending_within: float

    @property
    def weak_scaling(self) -> float:
        """A device's speed among all of them, against that among those of one server with the same rows each."""
        return (self.step_seconds + self.sending_within) / (self.step_seconds + self.sending_seconds)


@dataclass(frozen=True)
class Plan:
    """A regime on a cluster. `drawing_flops`: a picture's nets, per step of the sampler, without guidance."""

    regime: Regime
    cluster: ClusterConfig
    stages: tuple[StagePlan, ...]
    pictures: int
    share: float
    drawing_flops: float

    @property
    def flops(self) -> float:
        """Of all stages."""
        return sum(one.flops for one in self.stages)

    @property
    def device_hours(self) -> float:
        """Of all stages."""
        return sum(one.device_hours for one in self.stages)


def read_histogram(path: Path, regime: Regime) -> Histogram:
    """Sizes of pictures from a manifest.jsonl or a histogram, {pictures: {shorter side: how many are as large}}.

    Raises:
        UserError: the file is neither.
    """
    if path.suffix == ".jsonl":
        sides: dict[int, int] = {}
        for record in manifest.read(path.parent):
            side = record.native or record.size
            sides[side] = sides.get(side, 0) + 1
        return histogram_of(sides, tuple(stage.min_side for stage in regime.stages), str(path))
    values = read_yaml(path)
    try:
        pictures = {int(side): int(count) for side, count in values["pictures"].items()}
        return Histogram(dict(sorted(pictures.items())), str(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a histogram ({error}); for example {json.dumps(EXAMPLE)}") from None


EXAMPLE = {"pictures": {"0": 1000, "512": 600, "1024": 200}}


def blocks(spec: UNetSpec, batch: int, side: int, tokens: int) -> list[list[Layer]]:
    """The UNet's layers, in `models.stages.pieces`: between these a pipeline may be cut."""

    def piece(layer: Layer) -> str:
        kind, _, rest = layer.name.partition(".")
        if kind in ("time_embed", "label_emb"):
            return "embeddings"
        return f"{kind}.{rest.split('.')[0]}" if kind in ("input_blocks", "output_blocks") else kind

    layers = list(unet_layers(spec, batch, side, side, tokens))
    return [list(same) for _, same in groupby(layers, piece)]


def training_flops(pieces: Sequence[Sequence[Layer]], recompute: bool) -> list[tuple[int, int]]:
    """(forward, backward) FLOPs of each piece."""
    forward = [sum(layer.flops for layer in piece) for piece in pieces]
    return [(flops, (BACKWARD + recompute) * flops) for flops in forward]


def plan_stage(
    stage: Stage, regime: Regime, histogram: Histogram, model: ModelSpec, cluster: ClusterConfig
) -> StagePlan:
    """What a stage needs."""
    layout, recompute = cluster.parallel_config, cluster.recompute_config.recompute
    spec = net_of(regime, model)
    pieces = blocks(spec, cluster.batch_size, stage.size // model.vae.factor, model.tokens)
    flops = training_flops(pieces, recompute)
    starts = cut([forward + backward for forward, backward in flops], layout.pipeline_stage)
    runs = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(pieces)])]
    timeline = simulate(
        "1f1b",
        [sum(forward for forward, _ in flops[run]) for run in runs],
        [sum(backward for _, backward in flops[run]) for run in runs],
        layout.micro_batch_num,
    )
    memories = [memory_of(pieces[run], held, cluster) for run, held in zip(runs, timeline.held)]
    a_picture = sum(forward + backward for forward, backward in flops) / cluster.batch_size
    total, pictures = a_picture * stage.images, histogram.of_at_least(stage.min_side)
    return StagePlan(
        stage,
        sum(layer.parameters for piece in pieces for layer in piece),
        pictures,
        pictures / histogram.of_at_least(0),
        total,
        hours(total, cluster, timeline),
        max(memories, key=lambda memory: memory.total),
        timeline.bubble,
        3600 * hours(a_picture * cluster.global_batch, cluster, timeline) / cluster.devices,
        max(sending(pieces[run], cluster, layout.data_parallel) for run in runs),
        max(sending(pieces[run], cluster, min(layout.data_parallel, in_a_server(cluster))) for run in runs),
    )


def sizes_of(pieces: Sequence[Sequence[Layer]]) -> list[int]:
    """The weights of each layer that has any."""
    return [layer.parameters for piece in pieces for layer in piece if layer.parameters]


def in_a_server(cluster: ClusterConfig) -> int:
    """How many copies of a pipeline stage a server has."""
    return max(1, cluster.network.server // cluster.parallel_config.pipeline_stage)


def sending(pieces: Sequence[Sequence[Layer]], cluster: ClusterConfig, copies: int) -> float:
    """Seconds a step in which `copies` of a pipeline stage of these pieces send gradients, and weights where shared."""
    sent = collectives(sizes_of(pieces), copies, cluster.parallel_config.optimizer_shard)
    return sum(seconds(one, copies, in_a_server(cluster), cluster.network) for one in sent)


def net_of(regime: Regime, model: ModelSpec) -> UNetSpec:
    """The shape of a regime's nets."""
    return widened(next(iter(model.unets.values())), regime.width)


def hours(flops: float, cluster: ClusterConfig, timeline: Timeline) -> float:
    """Hours of one device."""
    return flops / (cluster.peak_tflops * 1e12 * cluster.utilisation * (1 - timeline.bubble)) / 3600


def memory_of(pieces: Sequence[Sequence[Layer]], held: int, cluster: ClusterConfig) -> Memory:
    """What a pipeline stage of these pieces keeps, with the activations of `held` micro-batches."""
    sizes = sizes_of(pieces)
    parameters = sum(sizes)
    sharers = cluster.parallel_config.data_parallel if cluster.parallel_config.optimizer_shard else 1
    written = [sum(layer.written for layer in piece) for piece in pieces]
    kept: float = sum(written) * held
    if cluster.recompute_config.recompute:
        kept = sum(piece[0].read for piece in pieces) * held + max(written)
    return Memory(SINGLE * parameters, SINGLE * parameters, SINGLE * KEPT * max(loads(sizes, sharers)), SINGLE * kept)


def plan(regime: Regime, histogram: Histogram, model: ModelSpec, cluster: ClusterConfig) -> Plan:
    """The whole regime.

    Raises:
        UserError: it does not fit into the devices' memory; the line says what would.
    """
    found = laid_out(regime, histogram, model, cluster)
    too_large = max(found.stages, key=lambda one: one.memory.total)
    if too_large.memory.total > cluster.memory_gib * GIB:
        raise UserError(
            f"{regime.name}, {too_large.stage.net} at {too_large.stage.size}: {too_large.memory.total / GIB:.1f} GiB "
            f"a device are needed and {cluster.memory_gib:g} are there; "
            f"{_what_would(regime, histogram, model, cluster)}"
        )
    return found


def laid_out(regime: Regime, histogram: Histogram, model: ModelSpec, cluster: ClusterConfig) -> Plan:
    """The regime's plan, whether it fits or not."""
    stages = tuple(plan_stage(stage, regime, histogram, model, cluster) for stage in regime.stages)
    pictures = max(one.pictures for one in stages)
    spec = net_of(regime, model)

    def forward(size: int) -> int:
        side = size // model.vae.factor
        return unet_flops(spec, side, side, model.tokens)

    drawing = sum(share * forward(size) for _, share, size in regime.drawing)
    return Plan(regime, cluster, stages, pictures, pictures / histogram.of_at_least(0), drawing)


def alternatives(cluster: ClusterConfig) -> Iterator[tuple[str, ClusterConfig]]:
    """What one might change to need less memory, the cheapest first, each on top of those before."""
    layout = cluster.parallel_config
    if not layout.optimizer_shard and layout.data_parallel > 1:
        layout = replace(layout, optimizer_shard=True)
        cluster = replace(cluster, parallel_config=layout)
        yield "optimizer_shard: true", cluster
    if not cluster.recompute_config.recompute:
        cluster = replace(cluster, recompute_config=replace(cluster.recompute_config, recompute=True))
        yield "recompute: true", cluster
    while cluster.batch_size > 1:
        cluster = replace(cluster, batch_size=cluster.batch_size // 2)
        yield f"batch_size: {cluster.batch_size}", cluster
    while layout.data_parallel % 2 == 0:
        layout = replace(
            layout,
            data_parallel=layout.data_parallel // 2,
            pipeline_stage=layout.pipeline_stage * 2,
            micro_batch_num=max(layout.micro_batch_num, 4 * layout.pipeline_stage * 2),
        )
        cluster = replace(cluster, parallel_config=layout)
        yield f"pipeline_stage: {layout.pipeline_stage}", cluster


def _what_would(regime: Regime, histogram: Histogram, model: ModelSpec, cluster: ClusterConfig) -> str:
    changed: list[str] = []
    for change, other in alternatives(cluster):
        key = change.split(":")[0]
        changed = [*(one for one in changed if not one.startswith(key)), change]
        largest = max(one.memory.total for one in laid_out(regime, histogram, model, other).stages)
        if largest <= cluster.memory_gib * GIB:
            return f"with {', '.join(changed)} it would be {largest / GIB:.1f}"
    return "no way of spreading it over these devices would fit"
