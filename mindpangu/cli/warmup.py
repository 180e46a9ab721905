"""`mindpangu warmup`: compile ahead what a model's commands will want, so that no user waits for it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Optional

import typer

from mindpangu import runtime
from mindpangu.cli.generate import DEFAULT_MODEL
from mindpangu.errors import UserError

COMMANDS = ("generate", "batch", "coop")
ALL = "all"
PROMPT = "a fox"


def arguments(
    command: str, model: str, recipe: Path, size: str, count: int, steps: int, device: str, folder: Path
) -> list[str]:
    """A command as a user gives it, whose graphs are those of `count` pictures at a size, and fewer steps do not do."""
    drawn = ["--out", str(folder / "out"), "--device", device]
    if command == "batch":
        prompts = folder / "prompts.txt"
        prompts.write_text(f"{PROMPT}\n" * count, encoding="utf-8")
        options = ["--set", f"steps={steps}", "--set", f"size={size}", "--batch", str(count)]
        return [command, str(prompts), "--model", model, *options, *drawn]
    many = ["--n", str(count), "--steps", str(steps)]
    if command == "coop":
        return [command, "--config", str(recipe), "--prompt", PROMPT, *many, *drawn]
    return [command, PROMPT, "--model", model, "--size", size, *many, *drawn]


def graphs() -> set[Path]:
    """What is kept."""
    return {path for path in (runtime.cache_folder() / "graphs").glob("*") if len(path.name) == 16}


def compiled(given: list[str]) -> str:
    """Run a command in a process of its own, and say in words what it left. Raises: UserError, its own."""
    before, started = graphs(), time.monotonic()
    done = subprocess.run(
        [sys.executable, sys.argv[0], *given],
        check=False,
        capture_output=True,
        text=True,
        env=runtime.found_environment(),
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(said[-1].removeprefix("mindpangu: ") if said else f"it ended with {done.returncode}")
    new = graphs() - before
    return f"{time.monotonic() - started:.1f} s, {'compiled' if new else 'was there already'}"


def warmup(
    model: str = typer.Option(DEFAULT_MODEL, help="Zoo name or model folder."),
    command: list[str] = typer.Option(["generate", "batch"], help=f"{', '.join(COMMANDS)}; may be repeated."),
    size: list[str] = typer.Option([], help="WIDTHxHEIGHT, or all of the model's; may be repeated."),
    count: list[int] = typer.Option([1], "--n", min=1, help="Pictures drawn together by generate and coop."),
    batch: int = typer.Option(8, "--batch", min=1, help="Pictures drawn together by batch."),
    steps: int = typer.Option(30, min=1, help="Sampling steps: graphs are kept for a number of them."),
    recipe: Optional[Path] = typer.Option(None, help="coop's: see configs/infer/."),
    device: str = typer.Option("auto", help="auto, CPU or Ascend."),
) -> None:
    """Compile operators and graphs ahead, by drawing once; later commands of the same kind take them from the disk."""
    from mindpangu import zoo
    from mindpangu.infer.request import check_size
    from mindpangu.models.loading import load_model_spec

    for one in command:
        if one not in COMMANDS:
            raise UserError(f"command '{one}' is unknown; allowed: {', '.join(COMMANDS)}")
    if "coop" in command and recipe is None:
        raise UserError("--command coop needs --recipe, for example configs/infer/coop_text_line.yaml")
    spec = load_model_spec(zoo.find(model))
    sizes = list(spec.sizes) if ALL in size else size or [spec.default_size]
    for one in sizes:
        check_size(one, spec)
    if runtime.start(device) == "CPU":
        from mindpangu.ops.cpu.build import library

        library()
    wanted = [(one, s, n) for one in command for s in (sizes if one != "coop" else [""]) for n in
              ([batch] if one == "batch" else count)]  # fmt: skip
    failed = 0
    for number, (one, asked, n) in enumerate(wanted, start=1):
        print(f"[{number}/{len(wanted)}] {one}{f', {asked}' if asked else ''}, {n} together: ", end="", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                given = arguments(one, model, recipe or Path(), asked, n, steps, device, Path(folder))
                print(compiled(given), flush=True)
            except UserError as error:
                failed += 1
                print(f"not compiled: {error}", flush=True)
    kept = graphs()
    used = sum(file.stat().st_size for path in kept for file in path.rglob("*") if file.is_file())
    print(f"{len(kept)} sets of graphs, {used / 2**20:.0f} MiB, in {runtime.cache_folder()}; delete it to begin anew")
    if failed:
        raise UserError(f"{failed} of {len(wanted)} could not be compiled, see above")
