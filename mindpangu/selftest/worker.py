"""As a program, the process that makes the checks: python -m mindpangu.selftest.worker DEVICE EVERYTHING ONLY FIRST.

It prints a line of JSON as each check begins, {"number", "group", "name"}, and one as it ends, {"status", …}. A fault
in a kernel may end or hang it: another process (see `run`) watches over it, and starts one anew behind the culprit.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from mindpangu import runtime
from mindpangu.errors import UserError
from mindpangu.selftest.check import Check, RefusedError


def all_checks(everything: bool, only: str) -> list[Check]:
    """Those whose group or name contains `only`; the quick ones, or everything."""
    from mindpangu.selftest import layers, nets, operators, ranks

    found: Iterator[Check] = (check for part in (operators, nets, ranks, layers) for check in part.checks())
    return [check for check in found if (everything or check.quick) and only in f"{check.group}, {check.name}"]


def outcome(check: Check) -> dict[str, Any]:
    """What a check came to, as plain values; whatever it raises is its result."""
    started = time.monotonic()
    try:
        made = check.run()
        found = {"status": made.status, **vars(made)}
    except (RefusedError, UserError) as reason:
        found = {"status": "refused", "note": str(reason)}
    except Exception as fault:  # that is what is looked for
        lines = str(fault).strip().splitlines() or [""]
        found = {"status": "failed", "note": f"{type(fault).__name__}: {lines[0]}"}
    return {**found, "seconds": round(time.monotonic() - started, 2)}


def main(device: str, everything: str, only: str, first: str) -> None:
    """Make the checks from number `first` on, and say when there are no more."""
    runtime.start(device)
    made = all_checks(everything == "everything", only)
    for number, check in list(enumerate(made))[int(first) :]:
        begun = {"number": number, "of": len(made), "group": check.group, "name": check.name}
        print(json.dumps(begun), flush=True)
        print(json.dumps(outcome(check)), flush=True)
    print(json.dumps({"number": len(made), "of": len(made)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
