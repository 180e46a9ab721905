"""Compile the CPU operators once, into a cache keyed by source, compiler, CPU and oneDNN.

oneDNN is PyPI's OpenMP build (onednn-cpu-gomp). MindSpore has loaded another library of the same SONAME, which the
loader would hand to us instead: so the copy in the cache carries a SONAME of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Optional

from mindpangu import runtime

LIBRARY, WHOLE = "libmindpangu_ops.so", "libraries.sha256"
SONAME, OUR_SONAME = b"libdnnl.so.3\0", b"libdnnm.so.3\0"
# -ffast-math at compilation alone: at the link it would also switch denormals off for the whole process.
COMPILE = ("-O3", "-ffast-math", "-march=native", "-fopenmp", "-std=c++17", "-fPIC", "-Wall", "-Wextra")
LINK = ("-shared", "-fopenmp", "-lmvec", "-lm", "-Wl,-rpath,$ORIGIN")


def _installed(package: str, name: str) -> Optional[Path]:
    """A file that a Python package brought, by its name."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())).resolve() for f in files if f.name == name), None)


def _build(compiler: str, sources: list[Path], include: Path, onednn: bytes, target: Path) -> None:
    """Compile into a folder beside `target` and move it there whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name) / "built"
        folder.mkdir()
        (folder / "libdnnm.so.3").write_bytes(onednn.replace(SONAME, OUR_SONAME))
        objects = []
        for source in sources:
            objects.append(str(folder / f"{source.stem}.o"))
            _run([compiler, *COMPILE, f"-I{include}", "-c", str(source), "-o", objects[-1]])
        _run([compiler, *objects, str(folder / "libdnnm.so.3"), *LINK, "-o", str(folder / LIBRARY)])
        (folder / WHOLE).write_text(_digests(folder), encoding="utf-8")
        try:
            folder.rename(target)
        except OSError:  # another process was first
            if not _is_whole(target):
                raise


def _digests(folder: Path) -> str:
    """SHA-256 of the libraries."""
    return "\n".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.so*")))


def _is_whole(folder: Path) -> bool:
    """Whether both libraries are as they were built: a damaged one ends the process when it is loaded."""
    try:
        return (folder / WHOLE).read_text(encoding="utf-8") == _digests(folder)
    except OSError:
        return False


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@cache
def library() -> Optional[Path]:
    """The compiled operators, built where they are not there yet; None, after one line that says why, where not."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    header = _installed("onednn-devel-cpu-gomp", "dnnl.hpp")
    onednn = _installed("onednn-cpu-gomp", "libdnnl.so.3.2")
    missing = [
        name
        for name, found in (("g++", compiler), ("onednn-devel-cpu-gomp", header), ("onednn-cpu-gomp", onednn))
        if found is None
    ]
    if missing or compiler is None or header is None or onednn is None:
        _say(f"without {', '.join(missing)} the fast CPU operators cannot be built; everything runs, 2–4 times slower")
        return None
    sources = sorted(Path(__file__).parent.glob("*.cpp"))
    blob = onednn.read_bytes()
    version = subprocess.run(
        [compiler, "-v", "-E", "-march=native", "-x", "c++", os.devnull], capture_output=True, check=False
    )
    key = hashlib.sha256(version.stderr + repr((COMPILE, LINK)).encode() + hashlib.sha256(blob).digest())
    for source in [*sources, *sorted(Path(__file__).parent.glob("*.hpp"))]:
        key.update(source.read_bytes())
    target = runtime.cache_folder() / f"ops-{key.hexdigest()[:16]}"
    if not _is_whole(target):
        shutil.rmtree(target, ignore_errors=True)
        _say("building the CPU operators (once, about 10 s)")
        try:
            _build(compiler, sources, header.parent, blob, target)
        except subprocess.CalledProcessError as error:
            first = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[:200])
            _say(f"the CPU operators do not compile here ({first.strip()}); everything runs, 2–4 times slower")
            return None
        except OSError as error:
            _say(f"the CPU operators cannot be kept in {target.parent} ({error}); everything runs, 2–4 times slower")
            return None
    return target / LIBRARY


def _say(line: str) -> None:
    print(f"mindpangu: {line}", file=sys.stderr)


runtime.graphs_depend_on.append(library)
