"""How the attention kernels cut their work, and the least time it can take: computed, never run on an NPU.

The arithmetic of the tiles is that of `ascendc/flash_attention/op_kernel/attention_tiling.h`, word for word; a test
compares the two on ten thousand shapes. Sizes are in numbers, memory in bytes, time in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

FRACTAL = 16  # side of the cube unit's blocks
SLOTS = 2  # tiles under way between the cube and the vector cores
BLOCK = 8  # float numbers in 32 bytes
STEP = 64  # float numbers a vector instruction takes at once
WIDE = 32  # columns that a tile should have
SPAN = 8  # tiles of keys at most whose products are summed
SIDES = (128, 112, 96, 80, 64, 48, 32, 16)


@dataclass(frozen=True)
class Chip:
    """Memories of one core; `cube`, `vector`: numbers of cores; `clock` in Hz; bandwidths of the whole chip in bytes/s.

    `cache`: of the L2 cache, through which the cores exchange tiles. A cube core does 16³ multiply-adds a cycle, a
    vector core an operation on 64 float numbers.
    """

    name: str
    cube: int
    vector: int
    clock: float
    memory: float
    cache: float
    l1: int
    l0: int
    l0c: int
    ub: int

    @property
    def cube_flops(self) -> float:
        """Peak of all cube cores, FLOP/s in fp16."""
        return self.cube * 2 * FRACTAL**3 * self.clock


# The mix kernel's own share is taken off L1 and UB. Bandwidths: CANN's guide, "L2 Cache Tiling".
ASCEND_910B = Chip(
    "Ascend 910B2", 24, 48, 1.8e9, 1.6e12, 7e12, 512 * 1024 - 256, 64 * 1024, 128 * 1024, 184 * 1024 - 256
)
# Coupled cores: `cube` and `vector` are the same ones, and there is no cache through which they exchange tiles.
ASCEND_910A = Chip("Ascend 910A", 32, 32, 1.0e9, 1.2e12, 4e12, 1024 * 1024, 64 * 1024, 256 * 1024, 248 * 1024)


def up(n: int, to: int) -> int:
    """The next multiple."""
    return (n + to - 1) // to * to


def first_half(rows: int) -> int:
    """Rows of a tile that the first of two vector cores takes."""
    return min(up((rows + 1) // 2, BLOCK), rows)


@dataclass(frozen=True)
class Plan:
    """Bytes in use, and of the workspace for each cube core."""

    l1: int
    l0a: int
    l0b: int
    l0c: int
    ub: int
    workspace: int

    def fits(self, chip: Chip) -> bool:
        """Whether a core of the chip has as much."""
        return self.l1 <= chip.l1 and max(self.l0a, self.l0b) <= chip.l0 and self.l0c <= chip.l0c and self.ub <= chip.ub


class ForwardTile(NamedTuple):
    """A tile of rows × columns scores; `span` of them beside each other have their products with values summed, and
    `strip` rows of a span are softened at once."""

    rows: int
    columns: int
    span: int
    strip: int


def forward_plan(width: int, tile: ForwardTile, score: int) -> Plan:
    """What the forward kernel takes, for heads of `width` channels and scores of `score` bytes."""
    d, half, seen = up(width, FRACTAL), first_half(tile.rows), tile.span * tile.columns
    wide = max(d, tile.columns)
    return Plan(
        l1=2 * (2 * tile.rows * d + 2 * 2 * tile.columns * d + 2 * tile.rows * tile.columns),
        l0a=2 * 2 * tile.rows * wide,
        l0b=2 * 2 * tile.columns * d,
        l0c=2 * 4 * tile.rows * wide,
        ub=(2 * score + (4 if score == 2 else 0)) * tile.strip * seen
        + 2 * 2 * max(tile.strip * seen, half * d)
        + 2 * 4 * half * d
        + 4 * half * d
        + 4 * tile.strip * STEP
        + 2 * 4 * up(half, BLOCK)
        + (7 + BLOCK) * 4 * up(half, BLOCK),
        workspace=up(SLOTS * ((score + 2) * tile.rows * seen + 4 * tile.rows * d), 512),
    )


def backward_plan(width: int, rows: int, columns: int, sums: int, score: int, adds: bool) -> Plan:
    """What it takes in a pass of the backward kernel, in which `sums` results grow; with `adds` dq is added to."""
    d, half = up(width, FRACTAL), first_half(rows)
    wide, vector = max(d, columns), up(max(half, columns), BLOCK)
    return Plan(
        l1=2 * (2 * rows * d + 2 * 2 * columns * d + 2 * rows * columns),
        l0a=2 * 2 * rows * wide,
        l0b=2 * 2 * (max(rows, columns) if adds else columns) * d,
        l0c=2 * 4 * columns * (max(rows, d) if adds else rows) + sums * 4 * rows * d,
        ub=2 * (2 * score + (4 if score == 2 else 0)) * half * columns
        + 2 * 2 * half * columns
        + 2 * 2 * 4 * vector
        + 2 * BLOCK * 4 * up(half, BLOCK),
        workspace=up(SLOTS * (2 * score * rows * columns + sums * 2 * rows * columns), 512),
    )


def _largest(tile: tuple[int, int]) -> tuple[int, ...]:
    """By its size, the wider of two equal ones."""
    return tile[0] * tile[1], tile[1]


def _tallest(tile: tuple[int, int]) -> tuple[int, ...]:
    """By its rows, but not below WIDE columns, where there are as many."""
    return (min(tile[1], WIDE), *tile)


def _best(
    rows: int,
    columns: int,
    fits: Callable[[int, int], bool],
    order: Callable[[tuple[int, int]], tuple[int, ...]],
) -> tuple[int, int]:
    """The tile that comes last in an order among those that fit, no larger than the data; (0, 0) where none does."""
    tiles = {(min(r, up(rows, FRACTAL)), min(c, up(columns, FRACTAL))) for r in SIDES for c in SIDES}
    return max((tile for tile in tiles if fits(*tile)), key=order, default=(0, 0))


def forward_tile(queries: int, keys: int, width: int, score: int = 2, chip: Chip = ASCEND_910B) -> ForwardTile:
    """The forward kernel's: first the tile, then as many a span, then as many rows a strip as fit; all 0: none does.

    At least two spans, where there are two tiles: the cube makes one's scores during the other's softmax.
    """

    def fits(*tile: int) -> bool:
        return forward_plan(width, ForwardTile(*tile), score).fits(chip)

    rows, columns = _best(queries, keys, lambda r, c: fits(r, c, 1, BLOCK), _largest)
    if not rows:
        return ForwardTile(0, 0, 0, 0)
    span = next(
        (s for s in range(min(SPAN, (-(-keys // columns) + 1) // 2), 1, -1) if fits(rows, columns, s, BLOCK)), 1
    )
    strip = BLOCK
    while 2 * strip <= up(first_half(rows), BLOCK) and fits(rows, columns, span, 2 * strip):
        strip *= 2
    return ForwardTile(rows, columns, span, strip)


def backward_tile(
    queries: int, keys: int, width: int, score: int = 2, deterministic: bool = False, chip: Chip = ASCEND_910B
) -> tuple[int, int]:
    """Rows (keys) and columns (queries) of the backward kernel's tiles; of the deterministic one's, for both passes."""

    def fits(rows: int, columns: int) -> bool:
        return backward_plan(width, rows, columns, 2, score, not deterministic).fits(chip)

    longer = max(queries, keys)
    return _best(longer, longer, fits, _largest) if deterministic else _best(keys, queries, fits, _tallest)


def coupled_forward_plan(d: int, rows: int, columns: int) -> Plan:
    """What the forward kernel takes of a 910A's core, for heads of `d` channels: queries are rows, keys columns."""
    return Plan(
        l1=2 * (rows * d + 2 * columns * d + rows * columns),
        l0a=2 * 2 * columns * d,
        l0b=2 * 2 * rows * max(d, columns),
        l0c=4 * rows * columns + 4 * rows * d,
        ub=4 * rows * columns
        + max(2 * rows * columns, 2 * rows * d)
        + 2 * 4 * rows * d
        + 2 * rows * max(d, columns)
        + 5 * 4 * rows,
        workspace=0,
    )


def coupled_backward_plan(d: int, rows: int, columns: int) -> Plan:
    """What a pass of the backward kernel takes of it."""
    longer = max(rows, columns)
    return Plan(
        l1=2 * (4 * longer * d + 2 * rows * columns),
        l0a=2 * 2 * columns * max(d, rows),
        l0b=2 * 2 * longer * d,
        l0c=2 * 4 * rows * columns + 2 * 4 * longer * d,
        ub=2 * 4 * rows * columns + 4 * longer * d + 2 * 2 * max(rows * columns, longer * d) + 2 * 4 * rows,
        workspace=0,
    )


def coupled_forward_tile(queries: int, keys: int, width: int) -> tuple[int, int]:
    """The largest tile of a 910A's forward kernel, for a width that is a multiple of 16; (0, 0) where none fits."""
    return _best(queries, keys, lambda *tile: coupled_forward_plan(width, *tile).fits(ASCEND_910A), _largest)


def coupled_backward_tile(queries: int, keys: int, width: int) -> tuple[int, int]:
    """The largest tile of its backward kernel."""
    return _best(queries, keys, lambda *tile: coupled_backward_plan(width, *tile).fits(ASCEND_910A), _largest)


@dataclass(frozen=True)
class Estimate:
    """The least seconds that each part of a chip needs; they work side by side, so the longest counts.

    `flops`: those that attention needs, without padding. `share`: of the cube cores' peak, at best.
    """

    flops: int
    cube: float
    vector: float
    memory: float
    exchange: float
    chip: Chip

    @property
    def seconds(self) -> float:
        """The longest part."""
        return max(self.cube, self.vector, self.memory, self.exchange)

    @property
    def bound(self) -> str:
        """Which part that is."""
        return max(("cube", "vector", "memory", "exchange"), key=lambda part: float(getattr(self, part)))

    @property
    def share(self) -> float:
        """What is left of the cube cores' peak."""
        return self.flops / self.seconds / self.chip.cube_flops


# Vector operations on each score: maximum, minus it, scale, exp, sum, cast; from half the first three and a bound
# before them take half the time, and a cast comes after, which is as much. On each number of a row that is folded to
# one step: set and reduced, twice; on each of a product: factor, add.
FORWARD_PASSES, FOLD_PASSES, PRODUCT_PASSES = 6, 4, 2
# Scale, minus lse, exp, minus delta, times p, scale, cast; once more a cast over keys; from half two casts more.
BACKWARD_PASSES = (8, 7)


def _busiest(tasks: int, chip: Chip) -> float:
    """How much longer the core with most tasks works than if they could be shared evenly."""
    return -(-tasks // chip.cube) * chip.cube / tasks


def estimate_forward(
    batch: int, heads: int, queries: int, keys: int, width: int, score: int = 2, chip: Chip = ASCEND_910B
) -> Estimate:
    """The forward kernel's least time. Padding to tiles and cores without work are in it, waiting is not."""
    rows, columns, span, _ = forward_tile(queries, keys, width, score, chip)
    d, heads_in_all = up(width, FRACTAL), batch * heads
    blocks, spans = -(-queries // rows), -(-keys // (span * columns))
    padded = heads_in_all * up(queries, FRACTAL) * up(keys, FRACTAL)
    uneven = _busiest(heads_in_all * blocks, chip)
    products = heads_in_all * queries * spans * d
    folded = heads_in_all * queries * spans * STEP
    passes = FORWARD_PASSES * padded + FOLD_PASSES * folded + PRODUCT_PASSES * products
    # Keys and values are read again for each block of queries, from the cache.
    exchange = 2 * (score + 2) * padded + 2 * 4 * products + 2 * 2 * heads_in_all * blocks * keys * d
    return Estimate(
        flops=4 * heads_in_all * queries * keys * width,
        cube=4 * padded * d / chip.cube_flops * uneven,
        vector=passes / STEP / chip.vector / chip.clock * uneven,
        memory=2 * heads_in_all * (2 * queries + 2 * keys) * width / chip.memory,
        exchange=exchange / chip.cache * uneven,
        chip=chip,
    )


def estimate_backward(
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    width: int,
    score: int = 2,
    deterministic: bool = False,
    chip: Chip = ASCEND_910B,
) -> Estimate:
    """The backward kernel's least time, in one pass or, `deterministic`, in two."""
    rows = backward_tile(queries, keys, width, score, deterministic, chip)[0]
    d, heads_in_all = up(width, FRACTAL), batch * heads
    padded = heads_in_all * up(queries, FRACTAL) * up(keys, FRACTAL)
    casts = 2 if score == 2 else 0
    cube = vector = exchange = 0.0
    over_keys, over_queries = (keys, queries, 2, BACKWARD_PASSES[0]), (queries, keys, 1, BACKWARD_PASSES[1])
    for height, length, sums, passes in (over_keys, over_queries) if deterministic else (over_keys,):
        blocks = -(-height // rows)
        uneven = _busiest(heads_in_all * blocks, chip)
        products = 2 + sums + (0 if deterministic else 1)
        cube += 2 * products * padded * d / chip.cube_flops * uneven
        vector += (passes + casts) * padded / STEP / chip.vector / chip.clock * uneven
        read = 2 * 2 * heads_in_all * blocks * length * d
        added = 0 if deterministic else 2 * 4 * heads_in_all * blocks * length * d
        exchange += (2 * (2 * score + sums * 2) * padded + read + added) / chip.cache * uneven
    if not deterministic:
        exchange += (4 + 4 + 2) * heads_in_all * queries * d / chip.cache
    return Estimate(
        flops=10 * heads_in_all * queries * keys * width,
        cube=cube,
        vector=vector,
        memory=2 * heads_in_all * (4 * queries + 4 * keys) * width / chip.memory,
        exchange=exchange,
        chip=chip,
    )
