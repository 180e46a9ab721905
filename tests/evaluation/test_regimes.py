"""The comparison of regimes: every training's file and changes are right, costs add up, and a model is packed once."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mindpangu.config import load
from mindpangu.evaluation.regime_experiment import MERGED, ONCE, REGIMES, Regimes, merged, plot, total_flops
from mindpangu.spec import PipelineSpec
from mindpangu.train.config import TrainConfig
from mindpangu.zoo import find

CONFIGS = Path(__file__).parents[2] / "configs" / "regimes"


@pytest.fixture
def regimes(tmp_path):
    return Regimes(CONFIGS, tmp_path / "runs", find("emoji-128"), tmp_path / "data", range(2))


def commands(regimes):
    """What would be run, nothing of which is there; merging is left out, since it needs weights."""
    found = []
    with mock.patch.object(Regimes, "_merge"):
        regimes.carry_out(found.append)
    return found


def changes(words):
    return [value for option, value in zip(words, words[1:]) if option == "--set"]


def configs(regimes):
    """Of each training by its folder's name."""
    trained = [one for one in commands(regimes) if one[0] == "train"]
    found = [load(words[2], TrainConfig, changes(words)) for words in trained]
    return {config.output_dir.name: config for config in found}


def test_trainings_begin_with_what_was_trained_before(regimes):
    before = []
    for words in (one for one in commands(regimes) if one[0] == "train"):
        config = load(words[2], TrainConfig, changes(words))
        assert config.data.folder == regimes.data
        assert config.load_checkpoint is None or config.load_checkpoint.parent in before
        before.append(config.output_dir)
    found = configs(regimes)
    assert len(found) == 12 + 10
    assert found["structure-1"].load_checkpoint.parent.name == "common-1"
    assert found["boost-0"].load_checkpoint.parent.name == "low-0"
    assert found["structure_500-0"].diffusion.t_min == found["texture_500-0"].diffusion.t_max == 500
    overlap = found["structure-0"].diffusion, found["texture-0"].diffusion
    assert overlap[0].t_min < 500 < overlap[1].t_max


def test_boost_sees_no_picture_smaller_than_its_first_stage(regimes):
    found = configs(regimes)
    assert found["common-0"].data.min_side == found["structure-0"].data.min_side == 0
    for name in ("low-0", "low_double-0", "boost-0", "boost_double-0", "structure_large-0", "texture-0"):
        assert found[name].data.min_side >= 64, name


def test_costs_are_as_the_comparison_needs_them(regimes):
    """One net goes on, and boost of P parameters, at the cost of both experts; boost of 2P is dearer by two thirds."""
    flops = {name: total_flops(config) for name, config in configs(regimes).items()}

    def cost(*trainings):
        return sum(flops[f"{one}-0"] for one in regimes.needed(trainings))

    experts = cost(*REGIMES["time_decoupled"].values())
    assert cost("continued") == pytest.approx(experts, rel=0.02)
    assert cost("boost") == pytest.approx(experts, rel=0.02)
    assert 1.6 < cost("boost_double") / experts < 2.1
    assert cost(*ONCE["no_overlap"].values()) == pytest.approx(experts)


def test_a_model_is_packed_of_its_trainings_once(regimes):
    packed = [one for one in commands(regimes) if one[:2] == ["zoo", "pack"]]
    assert len(packed) == 2 * len(REGIMES) + len(ONCE)
    for words in packed:
        model = load(words[3], PipelineSpec, changes(words))
        parts = {value.partition("=")[0] for option, value in zip(words, words[1:]) if option == "--part"}
        assert {*model.experts, "vae", "text_encoder", "text_encoder_2"} == parts
    (regimes.runs / "models" / "continued-1").mkdir(parents=True)
    assert len([one for one in commands(regimes) if one[:2] == ["zoo", "pack"]]) == len(packed) - 1


def test_a_merged_net_has_the_updates_of_both():
    rng = np.random.default_rng(0)
    base = {"a": rng.standard_normal((3, 2)).astype(np.float16)}
    first, second = ({"a": base["a"] + np.float16(step)} for step in (0.5, -0.25))
    assert merged(base, [first, second], 1.0)["a"].dtype == np.float16
    np.testing.assert_allclose(merged(base, [first, second], 1.0)["a"], base["a"] + 0.25, atol=2e-3)
    np.testing.assert_allclose(merged(base, [first, base], 0.5)["a"], base["a"] + 0.25, atol=2e-3)
    assert set(MERGED.values()) == {0.5, 1.0}


def test_losses_are_plotted_beside_the_continued_net(tmp_path):
    losses = {key: [0.5] * 16 for key in ("trained", "large", "small", "heldout")}
    plot({"continued-0": {"losses": losses}, "boost-0": {"losses": losses}}, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 1000
