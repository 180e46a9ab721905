"""The cost of drawing together, on two tiny members: who is timed, and how often."""

from __future__ import annotations

import yaml
from typer.testing import CliRunner

from mindpangu.bench.coop import TOGETHER, measure
from mindpangu.cli.bench import app


def recipe(folder, model):
    members = {name: {"model": str(model), "size": size} for name, size in (("small", "32x32"), ("wide", "48x32"))}
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {"members": members, "output": "wide", "weights": {"wide": {"small": {"share": 0.5, "bridge": None}}}}
        )
    )
    return path


def test_every_member_alone_and_all_together_have_their_turns(tmp_path, model_folder, uncompiled):
    said = []
    found = measure(recipe(tmp_path, model_folder), [], None, steps=3, turns=2, said=said.append)
    assert list(found) == ["small", "wide", TOGETHER]
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())
    assert said == ["compiling", "turn 1 of 2", "turn 2 of 2"]


def test_the_command_prints_the_ratio(tmp_path, model_folder, uncompiled):
    options = ["coop", "--config", str(recipe(tmp_path, model_folder)), "--steps", "2", "--turns", "3"]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "small" in done.output
    assert "together over the sum of each alone, turn by turn: " in done.output
