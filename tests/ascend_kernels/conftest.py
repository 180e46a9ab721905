"""The kernels, compiled once a session."""

from __future__ import annotations

import shutil

import pytest

from tests.ascend_kernels import simulation


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """kernels(source, dtype, chip): a library of the simulator's folder."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder, built = tmp_path_factory.mktemp("kernels"), {}

    def get(source, dtype="half", chip="910b"):
        if (source, dtype, chip) not in built:
            built[source, dtype, chip] = simulation.build(source, folder, dtype, chip=chip)
        return built[source, dtype, chip]

    return get
