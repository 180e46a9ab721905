"""One contender in a process of its own: prepares cases, runs them when told, answers in lines of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

from mindpangu import runtime
from mindpangu.bench.cases import CASES

# name -> (is it ours, its setting: our CPU operators, or the peer's extras)
CONTENDERS = {
    "mindpangu bf16": (True, "bf16"),
    "mindpangu fp32": (True, "fp32"),
    "plain MindSpore": (True, "off"),
    "PyTorch fp32": (False, ""),
    "PyTorch bf16": (False, "fast"),
    "PyTorch bf16 compiled": (False, "fast compiled"),
}


def main(contender: str, kind: str, number: str, folder: str) -> None:
    """Serve one case: a line on stdin is one run, answered with its milliseconds; at the end, peak memory in MB."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print; only answers go out
    is_ours, setting = CONTENDERS[contender]
    case = CASES[kind][int(number)]
    if is_ours:
        os.environ[runtime.CPU_OPERATORS] = setting
        from mindpangu.bench import ours

        run = ours.prepare(Path(folder), case)
    else:
        os.environ.pop("GOMP_SPINCOUNT", None)  # ours; PyTorch is measured with its own default
        from mindpangu.bench import peer

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
