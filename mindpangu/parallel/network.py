"""What sending between devices costs: the collectives of a training step, and how long they take. Computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

from mindpangu.parallel.ranks import buckets, loads, owners

ALL_REDUCE, BROADCAST = "AllReduce", "Broadcast"
SINGLE = 4  # bytes of a number that is sent


@dataclass(frozen=True)
class NetworkConfig:
    """Servers of `server` devices: a device sends `inside_gb_s` to those of its server, `between_gb_s` to others.

    In 10⁹ bytes a second each way; every turn of a collective takes `latency_us` more. Assumed: about half of what a
    910B server's HCCS has on paper, and four fifths of a device's 200 Gb/s of RoCE.
    """

    server: int = 8
    inside_gb_s: float = 100.0
    between_gb_s: float = 20.0
    latency_us: float = 20.0

    def __post_init__(self) -> None:
        for name in ("server", "inside_gb_s", "between_gb_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True)
class Collective:
    """One call, in which a device gives or gets so many bytes."""

    kind: str
    bytes: int


def collectives(sizes: Sequence[int], copies: int, shared: bool) -> list[Collective]:
    """What `train.step.TrainStep` sends in a step, weights of so many numbers each, on each of `copies` of the net.

    Gradients and the loss in buckets; where the optimizer's state is shared each owner's weights besides.
    """
    if copies == 1:
        return []
    owned = owners(sizes, copies if shared else 1)
    sent = [1, *(sizes[i] for i in sorted(range(len(sizes)), key=owned.__getitem__))]
    found = [Collective(ALL_REDUCE, SINGLE * sum(sent[run])) for run in buckets(sent)]
    if shared:
        found += [Collective(BROADCAST, SINGLE * load) for load in loads(sizes, copies) if load]
    return found


def seconds(one: Collective, copies: int, inside: int, network: NetworkConfig) -> float:
    """How long a call takes between `copies`, of which a server has `inside`.

    As HCCL does it: within servers each device takes its part of the sum, the parts are summed between servers (halving
    and doubling), and gathered within servers. A broadcast goes to the servers in as many parts, and on within them.
    """
    inside = min(inside, copies)
    servers = ceil(copies / inside)
    within, between = one.bytes * (inside - 1) / inside, one.bytes / inside * (servers - 1) / servers
    turns = ceil(log2(servers)) + (inside > 1)
    once = within / network.inside_gb_s / 1e9 + between / network.between_gb_s / 1e9 + turns * network.latency_us / 1e6
    return 2 * once if one.kind == ALL_REDUCE else once
