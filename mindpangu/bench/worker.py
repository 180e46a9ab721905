"""One contender in a process of its own: prepares cases, runs them when told, answers in lines of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from mindpangu import runtime
from mindpangu.bench.cases import CASES


@dataclass(frozen=True)
class Contender:
    """`setting`: our CPU operators (None: the default), or the peer's extras; `left_out`: one of our operators."""

    is_ours: bool
    setting: Optional[str] = None
    left_out: Optional[str] = None


OURS = {"bf16": "mindpangu bf16", "fp32": "mindpangu fp32", "off": "plain MindSpore"}
CONTENDERS = {
    **{OURS[setting]: Contender(True, setting) for setting in runtime.cpu_precisions()},
    "PyTorch fp32": Contender(False, ""),
    "PyTorch bf16": Contender(False, "fast"),
    "PyTorch bf16 compiled": Contender(False, "fast compiled"),
}
# What each of our operators is worth: a case with all of them, then without one.
OPERATORS = ("conv2d", "dense", "group_norm", "layer_norm", "geglu", "attention", "adamw", "muon")
EACH_OPERATOR = {"all": Contender(True), **{f"without {name}": Contender(True, left_out=name) for name in OPERATORS}}


def main(contender: str, kind: str, number: str, folder: str) -> None:
    """Serve one case: a line on stdin is one run, answered with its milliseconds; at the end, peak memory in MB."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print; only answers go out
    chosen, case = {**CONTENDERS, **EACH_OPERATOR}[contender], CASES[kind][int(number)]
    if chosen.is_ours:
        if chosen.setting is not None:
            os.environ[runtime.CPU_OPERATORS] = chosen.setting
        from mindpangu.bench import ours
        from mindpangu.ops import cpu

        if chosen.left_out is not None:
            cpu.left_out.add(chosen.left_out)
        run = ours.prepare(Path(folder), case)
    else:
        # PyTorch is measured with its own defaults: MindSpore's ONEDNN_MAX_CPU_ISA would hold its oneDNN back too.
        for name in set(os.environ) - set(runtime.found_environment()):
            del os.environ[name]
        from mindpangu.bench import peer

        setting = chosen.setting or ""
        run = peer.prepare(Path(folder), case, "fast" in setting, "compiled" in setting)
    start = time.perf_counter()
    result = run().astype("float64")
    first = time.perf_counter() - start
    run()
    print(json.dumps({"first": first, "mean": result.mean(), "std": result.std()}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps(1000 * (time.perf_counter() - start)), file=answers, flush=True)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
