"""`mindpangu doctor`, what is installed, and `mindpangu selftest`, whether it is right."""

from __future__ import annotations

from pathlib import Path

import typer

from mindpangu import runtime, zoo
from mindpangu.cli.generate import check_writable
from mindpangu.errors import UserError


def doctor() -> None:
    """Print versions, device, settings, what Ascend lacks, and the state of the zoo. Exit code 2 if a check fails."""
    from mindpangu.selftest.machine import facts

    for what, found in facts():
        print(f"{what:<11} {found}")
    failed = False
    for name in zoo.names():
        try:
            zoo.check(zoo.find(name))
            print(f"zoo         {name}: intact")
        except UserError as error:
            failed = True
            print(f"zoo         {name}: {error}")
    if failed:
        raise UserError("the zoo is damaged, see above; reinstall mindpangu")


def selftest(
    out: Path = typer.Option(Path("selftest"), help="Folder for selftest.html and selftest.json."),
    everything: bool = typer.Option(
        False, "--all", help="On a CPU, too, make the checks that take minutes; an NPU makes them all."
    ),
    only: str = typer.Option("", help="Only checks whose group or name contains this."),
    device: str = typer.Option("auto", help="auto, CPU or Ascend."),
) -> None:
    """Hold operators, nets and training against known numbers: a report to send back. Exit code 2 if a check fails."""
    from mindpangu.checkpoint.store import write_atomically
    from mindpangu.selftest import report
    from mindpangu.selftest.machine import facts
    from mindpangu.selftest.run import results

    check_writable(out)
    device, found = runtime.start(device), []
    machine = list(facts())
    for one in results(device, everything or device == "Ascend", only):
        if "status" not in one:
            print(f"[{one['number'] + 1}/{one['of']}] {one['group']}: {one['name']} ", end="", flush=True)
            continue
        why = f" {one['note']}" if one["status"] != "passed" else ""
        print(f"{one['status']} {report.measured(one)}{why}", flush=True)
        found.append(one)
        # After each: what a machine that stops here has found is on the disk.
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "selftest.json", report.as_json(machine, found).encode())
        write_atomically(out / "selftest.html", report.page(machine, found).encode())
    print(f"{report.summary(found)}: {out / 'selftest.html'}, selftest.json")
    failed = [one["name"] for one in found if one["status"] == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(found)} checks failed: {'; '.join(failed[:3])}; see the report")
