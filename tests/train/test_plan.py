"""Plans: FLOPs as counted in real runs, the paper's table from stated assumptions, refusals that say what would do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mindpangu import runtime
from mindpangu.config import load, parse
from mindpangu.errors import UserError
from mindpangu.parallel.config import ClusterConfig
from mindpangu.train.plan import blocks, laid_out, plan, read_histogram, training_flops
from mindpangu.train.regimes import REGIMES, Histogram, resolution_boost, time_decoupled, widened
from tests.cli.test_commands import mindpangu
from tests.parity.golden_flops import BATCH, GOLDEN, SIDE, SPECS, TOKENS

CONFIGS = Path(__file__).parents[2] / "configs"
HISTOGRAM = CONFIGS / "train" / "histogram.yaml"


@pytest.fixture(scope="module")
def release():
    runtime.start("CPU")
    from mindpangu.models.inventory import find_spec

    return find_spec("pangu_draw_v3")


def cluster(**changes):
    values = {"devices": 8, "memory_gib": 64, "peak_tflops": 354, "utilisation": 0.35, "batch_size": 4}
    layout = {"data_parallel": 8, "optimizer_shard": True}
    return parse({**values, "parallel_config": layout, **changes}, ClusterConfig, "test")


@pytest.mark.parametrize("name", SPECS)
def test_flops_are_those_that_pytorch_counts_in_a_training_step(name):
    """Within 0.5 %: what is left is the gradient of the first layer's input, which nobody needs."""
    counted = json.loads(GOLDEN.read_text())[name]
    found = sum(
        forward + backward for forward, backward in training_flops(blocks(SPECS[name], BATCH, SIDE, TOKENS), False)
    )
    assert found == pytest.approx(counted, rel=5e-3)


def test_the_papers_table_from_what_is_assumed(release):
    """+48 % data is the histogram's; two nets of half the parameters give close to half the cost (paper: −51 %)."""
    plans = {
        name: laid_out(make(10**6), read_histogram(HISTOGRAM, make(1)), release, cluster())
        for name, make in REGIMES.items()
    }
    ours, boost = plans["time_decoupled"], plans["resolution_boost"]
    assert ours.share / boost.share - 1 == pytest.approx(0.48, abs=0.005)
    assert ours.flops / boost.flops - 1 == pytest.approx(-0.5, abs=0.04)
    assert ours.drawing_flops / boost.drawing_flops - 1 == pytest.approx(-0.5, abs=0.04)
    assert boost.stages[0].parameters == pytest.approx(2 * ours.stages[0].parameters, rel=0.1)


def test_device_hours_follow_from_flops(release):
    one = laid_out(time_decoupled(1000), Histogram({0: 10, 512: 5}), release, cluster()).stages[0]
    assert one.device_hours == pytest.approx(one.flops / (354e12 * 0.35) / 3600)
    assert one.bubble == 0
    assert one.share == 1


def test_a_pipeline_waits_and_its_stages_hold_less(release):
    layout = {"data_parallel": 2, "pipeline_stage": 4, "micro_batch_num": 8}
    whole = laid_out(time_decoupled(1000), Histogram({0: 10, 512: 5}), release, cluster()).stages[0]
    cut = laid_out(time_decoupled(1000), Histogram({0: 10, 512: 5}), release, cluster(parallel_config=layout)).stages[0]
    assert 3 / 11 - 0.02 < cut.bubble < 0.5
    assert cut.device_hours > whole.device_hours
    assert cut.memory.weights < 0.5 * whole.memory.weights


def test_recomputing_costs_flops_and_saves_memory(release):
    kept = laid_out(time_decoupled(1000), Histogram({0: 10, 512: 5}), release, cluster()).stages[0]
    again = laid_out(
        time_decoupled(1000), Histogram({0: 10, 512: 5}), release, cluster(recompute_config={"recompute": True})
    ).stages[0]
    assert again.flops == pytest.approx(kept.flops * 4 / 3)
    assert again.memory.activations < 0.3 * kept.memory.activations


def test_a_plan_that_does_not_fit_says_what_would(release):
    small = cluster(batch_size=64, parallel_config={"data_parallel": 8})
    with pytest.raises(
        UserError, match=r"resolution_boost, net at 1024: [\d.]+ GiB .* 64 are there; with optimizer_shard"
    ):
        plan(resolution_boost(1000), Histogram({0: 10, 512: 5, 1024: 1}), release, small)
    said = ""
    try:
        plan(time_decoupled(1000), Histogram({0: 10, 512: 5}), release, replace(small, memory_gib=40))
    except UserError as error:
        said = str(error)
    assert "recompute: true" in said
    assert "\n" not in said
    with pytest.raises(UserError, match="no way of spreading"):
        plan(time_decoupled(1000), Histogram({0: 10, 512: 5}), release, replace(small, memory_gib=0.1))


@pytest.mark.parametrize("devices", [8, 64, 256])
@pytest.mark.parametrize("regime", REGIMES)
def test_the_shipped_clusters_hold_the_5b_model(release, devices, regime):
    shipped = load(CONFIGS / "parallel" / f"910b_{devices}.yaml", ClusterConfig)
    made = REGIMES[regime](10**6)
    assert plan(made, read_histogram(HISTOGRAM, made), release, shipped).device_hours > 0


def test_twice_the_parameters_keep_heads_and_groups_whole(release):
    spec = release.unets["structure"]
    wide = widened(spec, 2**0.5)
    assert wide.model_channels == 448
    assert widened(spec, 1) is spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"devices": 7}, "data_parallel × pipeline_stage is 8 and devices 7"),
        ({"utilisation": 1.5}, "utilisation is 1.5"),
        ({"parallel_config": {"data_parallel": 2, "pipeline_stage": 4}}, "micro_batch_num 1 is below pipeline_stage 4"),
    ],
)
def test_contradictions_are_one_line(change, words):
    with pytest.raises(UserError, match=words):
        cluster(**change)


def test_histograms(tmp_path):
    path = tmp_path / "sizes.yaml"
    path.write_text("pictures: {512: 3, 0: 10}", encoding="utf-8")
    assert read_histogram(path, time_decoupled(1)).of_at_least(512) == 3
    with pytest.raises(UserError, match="does not say how many pictures have 1024"):
        read_histogram(path, time_decoupled(1)).of_at_least(1024)
    for text in ("pictures: {0: 3, 512: 10}", "sizes: 3", "pictures: {512: 3}"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="not a histogram"):
            read_histogram(path, time_decoupled(1))
    sample = Path(__file__).parents[1] / "data" / "sample" / "manifest.jsonl"
    assert read_histogram(sample, time_decoupled(1)).of_at_least(0) == len(sample.read_text().splitlines())


def test_the_command():
    files = ("--data", str(HISTOGRAM), "--parallel", str(CONFIGS / "parallel" / "910b_64.yaml"))
    done = mindpangu("plan", *files, "--regime", "all")
    assert done.returncode == 0, done.stderr
    assert "+48%" in done.stdout
    assert "assumed" in done.stdout
    done = mindpangu("plan", *files, "--regime", "time-decoupled")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
