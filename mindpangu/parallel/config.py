"""How a training is spread over devices (configs/parallel/). Key names are MindFormers'."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindpangu.parallel.network import NetworkConfig


@dataclass(frozen=True)
class ParallelConfig:
    """`data_parallel` copies of the net in `pipeline_stage` stages, through which go `micro_batch_num` batches a step.

    `optimizer_shard`: the copies share the optimizer's moments between them (ZeRO's first stage, arXiv 1910.02054).
    """

    data_parallel: int = 1
    pipeline_stage: int = 1
    micro_batch_num: int = 1
    optimizer_shard: bool = False

    def __post_init__(self) -> None:
        for name in ("data_parallel", "pipeline_stage", "micro_batch_num"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.micro_batch_num < self.pipeline_stage:
            raise ValueError(
                f"micro_batch_num {self.micro_batch_num} is below pipeline_stage {self.pipeline_stage}; "
                "stages would idle"
            )


@dataclass(frozen=True)
class RecomputeConfig:
    """`recompute`: keep only what enters each block, and compute the rest again on the way back."""

    recompute: bool = False


@dataclass(frozen=True)
class ClusterConfig:
    """`devices` with `memory_gib` each; `peak_tflops` in fp16 on paper, of which a training reaches `utilisation`.

    `batch_size`: pictures a micro-batch, on each copy of the net.
    """

    devices: int
    memory_gib: float
    peak_tflops: float
    utilisation: float
    batch_size: int
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    recompute_config: RecomputeConfig = field(default_factory=RecomputeConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        used = self.parallel_config.data_parallel * self.parallel_config.pipeline_stage
        if used != self.devices:
            raise ValueError(f"data_parallel × pipeline_stage is {used} and devices {self.devices}; they must be equal")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is {self.utilisation}; above 0 and at most 1 is allowed")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; at least 1 is needed")

    @property
    def global_batch(self) -> int:
        """Pictures a step."""
        return self.batch_size * self.parallel_config.micro_batch_num * self.parallel_config.data_parallel
