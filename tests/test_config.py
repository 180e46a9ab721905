"""Strict configuration: what is wrong is named, with the file, the key and the nearest known key."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.config import dump, load, parse, read_with_bases
from mindpangu.errors import UserError


@dataclass(frozen=True)
class Inner:
    rate: float
    names: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    kind: Literal["a", "bee"] = "a"
    path: Optional[Path] = None
    weights: dict[str, float] = field(default_factory=dict)


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_types_and_overrides(tmp_path):
    path = write(tmp_path, "inner: {rate: 1e-4, names: [x, y]}\nweights: {a: 1}\npath: here/there")
    config = load(path, Outer, ["inner.rate=0.5", "kind=bee"])
    assert config == Outer(Inner(0.5, ("x", "y")), "bee", Path("here/there"), {"a": 1.0})
    assert load(path, Outer).inner.rate == 1e-4  # YAML reads 1e-4 as text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inner: {rate: 1, nmes: []}", "inner.nmes: unknown key.*did you mean 'names'"),
        ("inner: {rate: fast}", "inner.rate: found 'fast'; a float is needed"),
        ("inner: {}", "inner.rate: missing"),
        ("inner: {rate: 1}\nkind: be", "kind: found 'be'; allowed: a, bee, did you mean 'bee'"),
        ("inner: {rate: 1, pair: [1]}", "inner.pair: found 1 values; exactly 2"),
        ("inner: {rate: 1}\nweights: {0: 1}", "weights.0: found 0; a str is needed"),
        ("inner: 3", "a mapping of keys is needed"),
        ("- 1", "a mapping of keys to values is needed"),
        ("inner: [", "not valid YAML"),
    ],
)
def test_says_what_is_wrong(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        load(write(tmp_path, text), Outer)
    assert "c.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_wrong_override(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.yaml", Outer)
    with pytest.raises(UserError, match="use key=value"):
        load(write(tmp_path, "inner: {rate: 1}"), Outer, ["kind"])


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.text(max_size=5)),
    st.tuples(st.integers(), st.integers()),
    st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False)),
)
def test_dump_and_parse_are_inverse(rate, names, pair, weights):
    config = Outer(Inner(rate, tuple(names), pair), "bee", Path("x"), weights)
    assert parse(dump(config), Outer, "test") == config


@pytest.mark.parametrize("path", sorted(Path("configs/zoo").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file_is_valid(path):
    from mindpangu.spec import PipelineSpec
    from mindpangu.train.config import TrainConfig

    load(path, PipelineSpec if path.stem.endswith("model") else TrainConfig)


@pytest.mark.parametrize("path", sorted(Path("configs/infer").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path):
    from mindpangu.infer.coop import CoopConfig

    load(path, CoopConfig)


def test_a_file_builds_on_another_one(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "common.yaml").write_text("inner: {rate: 0.5, steps: [1, 2]}\nkind: bee\n")
    (tmp_path / "own.yaml").write_text("base: below/common.yaml\ninner: {steps: [3]}\n")
    values, files = read_with_bases(tmp_path / "own.yaml")
    assert values == {"inner": {"rate": 0.5, "steps": [3]}, "kind": "bee"}
    assert [one.name for one in files] == ["own.yaml", "common.yaml"]


def test_a_base_that_is_none(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="is its own base"):
        load(tmp_path / "a.yaml", Outer)
    (tmp_path / "a.yaml").write_text("base: 3\n")
    with pytest.raises(UserError, match="the name of another YAML file"):
        load(tmp_path / "a.yaml", Outer)
    (tmp_path / "a.yaml").write_text("base: c.yaml\n")
    with pytest.raises(UserError, match=r"c\.yaml: no such file"):
        load(tmp_path / "a.yaml", Outer)
    (tmp_path / "c.yaml").write_text("no_such_key: 1\n")
    with pytest.raises(UserError, match=r"a\.yaml \(based on .*c.yaml\).*no_such_key"):
        load(tmp_path / "a.yaml", Outer)


def test_a_net_is_given_by_its_presets_name_with_changes_or_without():
    from mindpangu.spec import UNetSpec, VAESpec

    for kind in (UNetSpec, VAESpec):
        for name, values in kind.presets().items():
            assert parse(name, kind, "f.yaml") == parse(values, kind, "f.yaml")
    changed = parse({"preset": "emoji-128", "model_channels": 32}, UNetSpec, "f.yaml")
    assert changed == replace(parse("emoji-128", UNetSpec, "f.yaml"), model_channels=32)
    with pytest.raises(UserError, match=r"found preset 'emoji128'; allowed: .* did you mean 'emoji-128'"):
        parse("emoji128", UNetSpec, "f.yaml")
    with pytest.raises(UserError, match="channels_mult: unknown key"):
        parse({"preset": "emoji-128", "channels_mult": [1]}, UNetSpec, "f.yaml")
