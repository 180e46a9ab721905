"""The selftest: its references are right, it passes here and finds faults, and a crash or a hang ends one check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mindpangu import runtime

runtime.start("CPU")

from mindpangu.bench.roofline import CHIPS, groups  # noqa: E402
from mindpangu.cost.flops import unet_layers  # noqa: E402
from mindpangu.errors import UserError  # noqa: E402
from mindpangu.selftest import layers, machine, operators, reference, report, run  # noqa: E402
from mindpangu.selftest.check import Outcome  # noqa: E402
from mindpangu.selftest.narrow import TRAINED  # noqa: E402

SMALL = {
    "attention": (lambda q, k, v, g: reference.attention(q, k, v, 2, False, g), [(2, 3, 4), (2, 5, 4), (2, 5, 4)]),
    "causal": (lambda q, k, v, g: reference.attention(q, k, v, 1, True, g), [(1, 4, 3), (1, 4, 3), (1, 4, 3)]),
    "dense": (reference.dense, [(3, 4), (2, 4), (2,)]),
    "conv": (lambda x, w, b, g: reference.conv2d(x, w, b, 1, g), [(2, 2, 4, 3), (3, 2, 3, 3), (3,)]),
    "strided": (lambda x, w, b, g: reference.conv2d(x, w, b, 2, g), [(1, 2, 4, 6), (2, 2, 3, 3), (2,)]),
    "layer_norm": (lambda x, a, b, g: reference.layer_norm(x, a, b, 1e-5, g), [(3, 5), (5,), (5,)]),
    "group_norm": (lambda x, a, b, g: reference.group_norm_silu(x, a, b, 2, 1e-5, g), [(2, 4, 2, 2), (4,), (4,)]),
    "geglu": (reference.geglu, [(3, 6)]),
}
OUTPUTS = {"attention": (2, 3, 4), "causal": (1, 4, 3), "dense": (3, 2), "conv": (2, 3, 4, 3), "strided": (1, 2, 2, 3),
           "layer_norm": (3, 5), "group_norm": (2, 4, 2, 2), "geglu": (3, 3)}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_reference_has_the_gradients_of_its_value(name):
    """By central differences along random directions."""
    function, shapes = SMALL[name]
    rng = np.random.default_rng(0)
    inputs, grad = [rng.standard_normal(shape) for shape in shapes], rng.standard_normal(OUTPUTS[name])
    gradients = function(*inputs, grad)[1:]
    for i, gradient in enumerate(gradients):
        way = rng.standard_normal(shapes[i])
        ahead, behind = (
            (function(*[x + step * way if j == i else x for j, x in enumerate(inputs)], grad)[0] * grad).sum()
            for step in (1e-5, -1e-5)
        )
        assert (gradient * way).sum() == pytest.approx((ahead - behind) / 2e-5, rel=1e-6, abs=1e-8)


def test_an_operator_that_is_wrong_fails(monkeypatch):
    """A hundredth too much, in the value alone or in a gradient, is seen."""
    shape = operators.LAYER_NORMS["zoo"]
    assert operators.layer_norm(shape, "fp32").status == "passed"
    true = reference.layer_norm
    for place in range(4):

        def wrong(*given, place=place):
            return tuple(x * 1.01 if i == place else x for i, x in enumerate(true(*given)))

        monkeypatch.setattr(reference, "layer_norm", wrong)
        assert operators.layer_norm(shape, "fp32").status == "failed"


def test_no_number_fails():
    assert Outcome(float("nan"), "error", 1.0).status == "failed"
    assert Outcome(float("inf"), "s").status == "failed"


def test_layers_of_every_kind_are_timed():
    """Those of a small net; the 5B model's run on an NPU alone."""
    seen = set()
    for group in groups(unet_layers(TRAINED, 1, 8, 8, 7), CHIPS["910b"]):
        if group.example.kind not in seen:
            seen.add(group.example.kind)
            outcome = layers.measured(group, "910b")
            assert outcome.status == "passed" and outcome.figure > 0 and "roofline" in outcome.note
    assert seen == {"conv", "dense", "norm", "attention"}


def answering(monkeypatch, tmp_path, program):
    """Workers that run `program` instead."""
    path = tmp_path / "worker.py"
    path.write_text("import json, os, sys, time\nfirst = int(sys.argv[-1])\n" + program, encoding="utf-8")
    true = subprocess.Popen

    def other(command, **options):
        return true([sys.executable, str(path), *command[3:]], **options)

    monkeypatch.setattr(run.subprocess, "Popen", other)


BEGIN = """
say = lambda x: print(json.dumps(x), flush=True)
begin = lambda i: say({'number': i, 'of': 3, 'group': 'g', 'name': str(i)})
"""


def test_a_crash_or_a_hang_ends_one_check(monkeypatch, tmp_path):
    monkeypatch.setitem(run.PATIENCE, "CPU", 3)
    program = (
        BEGIN + "for i in range(first, 3):\n"
        "    begin(i)\n"
        "    if i == 0: os.abort()\n"
        "    if i == 1: print('a library says something'); time.sleep(600)\n"
        "    say({'status': 'passed', 'note': ''})\n"
        "begin(3)\n"
    )
    answering(monkeypatch, tmp_path, program)
    found = [one for one in run.results("CPU", False) if "status" in one]
    assert [one["status"] for one in found] == ["failed", "failed", "passed"]
    assert "ended by signal 6" in found[0]["note"] and "hung" in found[1]["note"]


def test_a_machine_on_which_nothing_starts_is_one_line(monkeypatch, tmp_path):
    answering(monkeypatch, tmp_path, "sys.exit('no NPU answers')")
    with pytest.raises(UserError, match="selftest cannot begin: the process ended with 1: no NPU answers"):
        list(run.results("CPU", False))
    with pytest.raises(UserError, match="no check's name contains 'unheard'"):
        answering(monkeypatch, tmp_path, BEGIN.replace("3", "0") + "begin(0)\n")
        list(run.results("CPU", False, "unheard"))


class _Closed(HTMLParser):
    """Counts what is said."""

    words = 0

    def handle_data(self, data):
        self.words += len(data.split())


def test_the_report_says_what_was_found_and_why():
    results = [
        {"group": "g", "name": "<a>", "status": "passed", "figure": 1e-6, "unit": "error", "allowed": 2e-5, "note": ""},
        {"group": "g", "name": "b", "status": "refused", "note": "no NPU & no CANN", "seconds": 0.1},
    ]
    page = report.page([("device", "CPU")], results)
    parser = _Closed()
    parser.feed(page)
    assert parser.words > 10 and "&lt;a&gt;" in page and "no NPU &amp; no CANN" in page and "1 passed, 0 failed" in page
    assert json.loads(report.as_json([("device", "CPU")], results))["checks"][1]["status"] == "refused"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Version=9.0.0\nx=1", "9.0.0"),
        ("Version=[8.5.0.1:8.5]\n", "8.5.0.1"),
        ("version=26.0.rc1\n", "26.0.rc1"),
        ("", None),
    ],
)
def test_cann_says_its_version(tmp_path, monkeypatch, text, version):
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "version.info").write_text(text, encoding="utf-8")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert machine.cann() == version


def test_the_command_passes_here(tmp_path):
    """All quick checks, as a user makes them."""
    command = [str(Path(sys.executable).with_name("mindpangu")), "selftest", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "selftest.json").read_text(encoding="utf-8"))
    groups_made = {one["group"] for one in found["checks"]}
    assert {"attention", "convolution", "dense", "net", "training", "optimizer"} <= groups_made
    assert {one["status"] for one in found["checks"]} == {"passed"}
    assert (tmp_path / "out" / "selftest.html").stat().st_size > 2000
