"""Shared by all tests: results are judged, not seconds, since machines are noisy; the emulator is built once."""

import pytest
from gpu_data import build_emulated
from hypothesis import HealthCheck, settings

settings.register_profile("fastich", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fastich")


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    """The CUDA kernels, built for the CPU."""
    return build_emulated(tmp_path_factory.mktemp("emulated"))
