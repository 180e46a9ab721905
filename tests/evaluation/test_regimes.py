"""The comparison of regimes: every training's file and changes are right, and a model is packed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindpangu.config import load
from mindpangu.evaluation.regime_experiment import Regimes
from mindpangu.spec import PipelineSpec
from mindpangu.train.config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "regimes"


@pytest.fixture
def regimes(tmp_path):
    return Regimes(CONFIGS, tmp_path / "runs", tmp_path / "parts", tmp_path / "data", range(2), (250, 500))


def changes(words):
    return [value for option, value in zip(words, words[1:]) if option == "--set"]


def test_trainings_are_said_in_full_and_in_order(regimes):
    trained = [one for one in regimes.commands() if one[0] == "train"]
    assert len(trained) == 2 * (4 + 2 * 2)
    folders = []
    for words in trained:
        config = load(words[2], TrainConfig, changes(words))
        assert config.data.folder == regimes.data and config.diffusion.vae == config.diffusion.text == regimes.parts
        if config.load_checkpoint is not None:
            assert config.load_checkpoint.parent in folders  # what it goes on from was trained before
        folders.append(config.output_dir)
    assert len(set(folders)) == len(trained)
    structure = load(trained[-2][2], TrainConfig, changes(trained[-2])).diffusion
    texture = load(trained[-1][2], TrainConfig, changes(trained[-1])).diffusion
    assert structure.t_min == texture.t_max == 500


def test_a_model_is_packed_of_its_trainings_once(regimes):
    packed = [one for one in regimes.commands() if one[:2] == ["zoo", "pack"]]
    assert len(packed) == 2 * (3 + 2)
    for words in packed:
        model = load(words[3], PipelineSpec, changes(words))
        parts = {value.partition("=")[0] for option, value in zip(words, words[1:]) if option == "--part"}
        assert {*model.experts, "vae", "text_encoder", "text_encoder_2"} == parts
    (regimes.models / "mono-1").mkdir(parents=True)
    assert len([one for one in regimes.commands() if one[:2] == ["zoo", "pack"]]) == len(packed) - 1
