"""What a user must never need to know: settings that make MindSpore run well, made before it is imported.

`prepare_environment` runs when `mindpangu` is imported and touches environment variables alone; `start` imports
MindSpore and chooses mode and device. Nothing else in the project sets any of these.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from mindpangu.errors import UserError

# Under every AVX512 setting MindSpore's oneDNN falls back to a reference convolution, about 70 times slower.
ONEDNN_ISA = "AVX2"

# Our own operators on a CPU: "bf16" inside with float32 outside, "fp32" throughout, or "off" (MindSpore's own).
CPU_OPERATORS = "MINDPANGU_CPU_OPS"
PRECISIONS = ("bf16", "fp32", "off")

# Attention on Ascend: MindSpore's FlashAttentionScore, which a 910A lacks, our AscendC kernels, whose package must be
# installed, or composed operators.
ASCEND_ATTENTION = "MINDPANGU_ASCEND_ATTENTION"
ATTENTIONS = ("mindspore", "mindpangu", "composed")

# What nets compute in, activations and products; normalisations and softmax stay in float32. By default bf16 on a 910B,
# fp16 on a 910A, fp32 on a CPU, which computes the others in float32 and rounds: for tests of their numerics.
COMPUTE_DTYPE = "MINDPANGU_COMPUTE_DTYPE"
COMPUTE_DTYPES = ("fp32", "bf16", "fp16")

# Scores of our attention kernels between the cores of a 910B: "half", or "fp32", slower and without a bound.
ASCEND_SCORES = "MINDPANGU_ASCEND_SCORES"
SCORES = ("half", "fp32")

# How MindSpore compiles for Ascend: "O1" fuses operators, "O0" takes them one by one. There is an O2 as well, which
# MindSpore takes out; it is a 910A's default, so that the level is always set.
JIT_LEVEL = "MINDPANGU_JIT_LEVEL"
JIT_LEVELS = ("O1", "O0")

# Seconds that processes of a training wait for one another: some compile for half an hour while others are done.
HCCL_TIMEOUTS = {"HCCL_CONNECT_TIMEOUT": "7200", "HCCL_EXEC_TIMEOUT": "7200"}
MINDSPORES_TIMEOUT = "600"  # of a connection: set by importing MindSpore, as msrun does, and no choice of the user's

DEVICES = ("auto", "CPU", "Ascend")


@dataclass(frozen=True)
class Setting:
    """One environment variable: the value in force and who set it ("mindpangu", or "you" where it was set already)."""

    name: str
    value: str
    origin: str


_settings: list[Setting] = []
_device: Optional[str] = None


def cores() -> int:
    """The number of CPU cores this process may use (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """How many threads this process should use: all cores, or its share of them where msrun has started several."""
    workers = int(os.environ.get("MS_WORKER_NUM", "1")) if os.environ.get("MS_ROLE") == "MS_WORKER" else 1
    return max(1, cores() // workers)


def cache_folder() -> Path:
    """Where what was built once is kept: $XDG_CACHE_HOME/mindpangu, by default ~/.cache/mindpangu."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without a name, as in containers
        home = Path(os.sep)
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "mindpangu"


def _cpu_has(*flags: str) -> bool:
    """Whether the CPU says so."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return all(flag in text for flag in flags)


def cpu_precisions() -> tuple[str, ...]:
    """What this CPU has of PRECISIONS: oneDNN multiplies bfloat16 in hardware, or by AVX512's other products."""
    with_bf16 = _cpu_has("avx512bw", "avx512vl", "avx512dq")
    return tuple(one for one in PRECISIONS if one != "bf16" or with_bf16)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"{name}={value} is unknown; allowed: {', '.join(allowed)}")
    return value


def cpu_operators() -> str:
    """Which CPU operators are asked for: "bf16", "fp32" or "off".

    Raises:
        UserError: the environment says something else, or what this CPU cannot do.
    """
    prepare_environment()
    found = _one_of(CPU_OPERATORS, os.environ[CPU_OPERATORS], PRECISIONS)
    if found not in cpu_precisions():
        raise UserError(f"{CPU_OPERATORS}=bf16: this CPU lacks AVX512, which bf16 needs in oneDNN; use fp32 or off")
    return found


def ascend_attention() -> str:
    """Whose attention is in force on Ascend: "mindspore" (the default), "mindpangu" or "composed" (the 910A's default).

    Raises:
        UserError: the environment says something else.
    """
    default = "composed" if ascend_chip() == "ascend910" else "mindspore"
    return _one_of(ASCEND_ATTENTION, os.environ.get(ASCEND_ATTENTION, default), ATTENTIONS)


def compute_dtype() -> str:
    """What nets compute in: the environment's choice, or the device's default.

    Raises:
        UserError: the environment says something else, or bf16 is asked of a 910A.
    """
    chip = ascend_chip() if _device == "Ascend" else ""
    default = "fp32" if _device != "Ascend" else "fp16" if chip == "ascend910" else "bf16"
    chosen = _one_of(COMPUTE_DTYPE, os.environ.get(COMPUTE_DTYPE, default), COMPUTE_DTYPES)
    if chosen == "bf16" and chip == "ascend910":
        raise UserError("compute dtype bf16 is for the 910B and later; a 910A has fp16 and fp32")
    return chosen


def ascend_scores() -> str:
    """What our attention kernels' scores are kept in: "half" (the default) or "fp32".

    Raises:
        UserError: the environment says something else.
    """
    return _one_of(ASCEND_SCORES, os.environ.get(ASCEND_SCORES, SCORES[0]), SCORES)


def jit_level() -> str:
    """How MindSpore compiles for Ascend: "O1" (the default, but of a 910A, where it is untried) or "O0".

    Raises:
        UserError: the environment says something else.
    """
    default = "O0" if ascend_chip() == "ascend910" else "O1"
    return _one_of(JIT_LEVEL, os.environ.get(JIT_LEVEL, default), JIT_LEVELS)


def weights_dtype() -> str:
    """What weights lie in memory in, unless asked otherwise: on Ascend what nets compute in, on a CPU fp32."""
    return compute_dtype() if _device == "Ascend" else "fp32"


def multiplies_in_fp16() -> bool:
    """Whether products are in fp16, so that small gradients are lost unless the loss is scaled."""
    return compute_dtype() == "fp16" or (_device == "Ascend" and ascend_chip() == "ascend910")


def ascend_chip() -> str:
    """MindSpore's name of the NPU's generation: "ascend910" is the 910A, "ascend910b" the 910B; empty without one."""
    from mindspore._c_expression import MSContext

    return str(MSContext.get_instance().get_ascend_soc_version())


def _check_ascend() -> None:
    from mindpangu.ascend_kernels import flash_attention

    chosen, _ = ascend_attention(), ascend_scores()
    if chosen == "mindspore" and ascend_chip() == "ascend910":
        raise UserError(f"{ASCEND_ATTENTION}={chosen} is for the 910B and later; a 910A has composed and mindpangu")
    if chosen == "mindpangu" and not flash_attention.installed():
        raise UserError(
            f"{ASCEND_ATTENTION}=mindpangu, and the operator package is not installed; build it with "
            "ascend_kernels/ascendc/flash_attention/build.sh --install, or unset the variable"
        )


def _default(name: str, value: str) -> Setting:
    if name in os.environ:
        return Setting(name, os.environ[name], "you")
    os.environ[name] = value
    return Setting(name, value, "mindpangu")


def prepare_environment() -> None:
    """Set the environment variables that MindSpore reads at import. A value the user has set is kept."""
    if _settings:
        return
    if platform.machine().lower() in ("x86_64", "amd64"):
        _settings.append(_default("ONEDNN_MAX_CPU_ISA", ONEDNN_ISA))
    _settings.append(_default("OMP_NUM_THREADS", str(threads())))
    # Our operators' threads wait awake for some microseconds only: a long spin takes the cores from MindSpore's own
    # threads and from every other process, and waking a sleeper for each operator costs a fifth of a training step.
    _settings.append(_default("GOMP_SPINCOUNT", "10000"))
    _settings.append(_default(CPU_OPERATORS, "bf16" if _cpu_has("avx512_bf16") else "fp32"))
    _settings.append(_default("GLOG_v", "3"))  # errors only
    # Plugins of other devices complain when they do not load; `mindpangu doctor` names what is missing instead.
    _settings.append(_default("GLOG_logtostderr", "1"))
    if "MS_ROLE" in os.environ:  # msrun has started this process
        if os.environ.get("HCCL_CONNECT_TIMEOUT") == MINDSPORES_TIMEOUT:
            del os.environ["HCCL_CONNECT_TIMEOUT"]
        _settings.extend(_default(name, seconds) for name, seconds in HCCL_TIMEOUTS.items())
    if "mindspore" in sys.modules and any(s.origin == "mindpangu" and s.name.startswith("ONEDNN") for s in _settings):
        print(
            f"mindpangu: MindSpore was imported first, so ONEDNN_MAX_CPU_ISA={ONEDNN_ISA} came too late and "
            "convolutions may be 70 times slower; import mindpangu before mindspore",
            file=sys.stderr,
        )


def settings() -> tuple[Setting, ...]:
    """The settings in force, for `mindpangu doctor`."""
    return tuple(_settings)


def found_environment() -> dict[str, str]:
    """The environment as it was before `prepare_environment`."""
    made = {setting.name for setting in _settings if setting.origin == "mindpangu"}
    return {name: value for name, value in os.environ.items() if name not in made}


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this thread alone uses MindSpore, which is not made for several; others wait.

    Raises:
        UserError: this process is a fork of one that has started MindSpore, which does not survive it.
    """
    if _forked:
        raise UserError(
            "MindSpore does not survive a fork; start processes anew, for example by multiprocessing's spawn"
        )
    with _one_thread:
        yield


def _note_fork() -> None:
    global _forked  # noqa: PLW0603 - of this process
    _forked = _device is not None


_one_thread, _forked = threading.RLock(), False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def ascend_available() -> bool:
    """True where MindSpore can load its Ascend back end and at least one NPU answers."""
    import mindspore as ms

    try:
        return bool(ms.hal.is_available("Ascend") and ms.hal.device_count("Ascend") > 0)
    except (RuntimeError, ValueError, AttributeError):
        return False


def most_memory() -> int:
    """Bytes that this process has had at most: of the NPU's memory, or on a CPU of the machine's."""
    import resource

    import mindspore

    if _device == "Ascend":
        return int(mindspore.runtime.max_memory_reserved())
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def start(device: str = "auto", memory: Optional[str] = None) -> str:
    """Import MindSpore, choose graph mode and the device, and return the device's name ("CPU" or "Ascend").

    `memory`: how much of an NPU's memory MindSpore may take, such as "58GB"; None: fifteen sixteenths of what is free.
    Idempotent; a second call with another device is an error, since MindSpore cannot move a running process.

    Raises:
        UserError: unknown device; Ascend asked for and absent; device changed after the start.
    """
    global _device  # noqa: PLW0603 - MindSpore's own context is per process too
    if device not in DEVICES:
        raise UserError(f"device '{device}' is unknown; allowed: {', '.join(DEVICES)}")
    if _device is not None:
        if device not in ("auto", _device):
            raise UserError(f"this process already runs on {_device}; start another one for {device}")
        return _device
    prepare_environment()
    import mindspore as ms

    if device == "Ascend" and not ascend_available():
        raise UserError("no Ascend NPU answers here; run `mindpangu doctor` to see what is missing, or use CPU")
    chosen = device if device != "auto" else ("Ascend" if ascend_available() else "CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    if chosen == "Ascend":
        _check_ascend()
        ms.set_context(jit_config={"jit_level": jit_level()})
        if memory is not None:
            ms.runtime.set_memory(max_size=memory)
        # Where operators' glue is compiled to, by default in the folder that one stands in.
        _settings.append(_default("MS_COMPILER_CACHE_PATH", str(cache_folder() / "operators")))
    ms.set_device(chosen)
    _device = chosen
    compute_dtype()
    return chosen


graphs_depend_on: list[Callable[[], object]] = []  # what else compiled graphs name, such as a library by its path
ABANDONED = 24 * 3600  # seconds after which a folder of graphs that were never finished goes


def _forget_abandoned(folder: Path) -> None:
    """Delete what processes that were killed have left."""
    for path in folder.glob(f"{tempfile.gettempprefix()}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def kept_graphs(*what: object) -> Iterator[None]:
    """Inside, MindSpore takes its compiled graphs from the disk, and puts them there the first time.

    MindSpore numbers the graphs of a process and trusts the numbers: so this is for a process that has compiled
    nothing before, and `what` must fix all that it compiles inside: nets, shapes, order. The loaded sources of this
    package, the versions and the device are part of the key already. An unwritable cache only means no cache, and
    so does a process without a script file, which MindSpore would read.
    """
    import mindspore as ms

    if not Path(sys.argv[0]).is_file():
        yield
        return
    depends_on = [str(asked()) for asked in graphs_depend_on]
    device = [start(), cpu_operators(), compute_dtype()]
    if device[0] == "Ascend":  # compiled further than on a CPU, by CANN
        toolkit = Path(os.environ.get("ASCEND_HOME_PATH", "")).resolve()
        device += [ascend_chip(), jit_level(), ascend_attention(), ascend_scores(), str(toolkit)]
    key = hashlib.sha256(repr((what, device, depends_on, ms.__version__, sys.version)).encode())
    ours = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "mindpangu"]
    for source in sorted(filter(None, ours)):
        key.update(Path(source).read_bytes())
    kept = cache_folder() / "graphs" / key.hexdigest()[:16]
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        _forget_abandoned(kept.parent)
        folder = kept if kept.is_dir() else Path(tempfile.mkdtemp(dir=kept.parent))
    except OSError:
        yield
        return
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(folder))
    try:
        yield
        if folder != kept:
            with suppress(OSError):  # another process was first
                folder.rename(kept)
    finally:
        ms.set_context(enable_compile_cache=False)
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)
