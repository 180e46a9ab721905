"""The simulator offers what the official headers do and nothing else: signatures.tsv has the facts.

Its rows (entity, type, chips) were compiled, with bodies, against CANN 8.1.RC1's headers and those of the development
kit 8.5.0 and of 2026-07, for a 910B (2201) and a 910A (1001); they are those of them that the simulator offers.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ascend_kernels.simulation import ARCHITECTURES, HERE

TABLE = Path(__file__).with_name("signatures.tsv")
ROWS = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines()]
FIRST = 1000  # line number of row 0
# What the simulator has for itself, and members that g++ cannot point to (operator[] of tensors is a row).
OWN = {"NAME", "bits", "count_", "use", "in", "buffer", "position", "start", "unit_of", "run"}


def statement(number: int, entity: str, kind: str) -> str:
    """C++ that compiles only if the entity is of that type."""
    if kind == "constructor":
        owner, arguments = re.fullmatch(r"(.*)\((.*)\)", entity).groups()
        return f"static_assert(std::is_constructible_v<{owner}{', ' + arguments if arguments else ''}>);"
    if kind == "enumerator":
        return f"constexpr auto e{number} = {entity};"
    if kind == "constant":
        return f"static_assert({entity});"
    if kind == "type":
        return f"static_assert(sizeof({entity}) > 0);"
    if "(" in kind or "::*" in kind:
        return f"auto p{number} = static_cast<{kind}>(&{entity});"
    return f"static_assert(std::is_same_v<decltype({entity}), {kind}>);"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("chip", ARCHITECTURES)
def test_the_simulator_offers_each_signature_on_the_chips_that_have_it(tmp_path, chip):
    architecture = str(ARCHITECTURES[chip])
    lines = ['#include "kernel_operator.h"', "#include <type_traits>"]
    for number, (entity, kind, _) in enumerate(ROWS):
        lines += [f'#line {FIRST + number} "row.cpp"', statement(number, entity, kind)]
    (tmp_path / "table.cpp").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = ["g++", "-std=c++17", "-w", "-fmax-errors=0", "-c", "-o", "/dev/null", f"-D__NPU_ARCH__={architecture}"]
    command += [f"-I{HERE}", str(tmp_path / "table.cpp")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    refused = {int(number) - FIRST for number in re.findall(r"row\.cpp:(\d+)", said)}
    absent = {number for number, row in enumerate(ROWS) if architecture not in row[2].split(",")}
    assert [ROWS[i][:2] for i in sorted(refused - absent)] == []
    assert [ROWS[i][:2] for i in sorted(absent - refused)] == []


def test_the_simulator_offers_nothing_that_the_table_does_not_have():
    """By name: functions and types of its namespace AscendC, members of classes, fields of parameters."""
    known = set(re.findall(r"\w+", " ".join(row[0] for row in ROWS)))
    text = re.sub(r"//.*", "", (HERE / "kernel_operator.h").read_text(encoding="utf-8"))
    text = re.sub(
        r"namespace (internal|sim) \{.*?\n\}  *\n|namespace (internal|sim) \{.*?\n\}\n", "", text, flags=re.DOTALL
    )
    offered = set(re.findall(r"^(?:inline )?(?:void|int64_t|uint8_t\*|GM_ADDR) (\w+)\(", text, re.MULTILINE))
    offered |= set(re.findall(r"^(?:enum )?(?:class|struct) (\w+)[^;]*\{", text, re.MULTILINE))
    offered |= set(re.findall(r"^    (?:void|bool|LocalTensor<\w>|TEventID) (\w+)\(", text, re.MULTILINE))
    for fields in re.findall(r"^    (?:u?int\d+_t|bool) ([^()]*?);", text, re.MULTILINE):
        offered |= set(re.findall(r"(\w+)(?: = [^,]+)?(?:,|$)", fields))
    assert len(offered) > 80
    assert offered - known - OWN == set()
