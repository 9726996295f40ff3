"""Shared by all tests: results are judged, not seconds, since machines are noisy; the emulator is built once.

So is a PostgreSQL cluster, for the tests of the store, which run on both databases.
"""

import os
import secrets

import pytest
from gpu_data import build_emulated
from hypothesis import HealthCheck, settings
from postgres_cluster import cluster, create_database, programs

settings.register_profile("fastich", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fastich")


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    """The CUDA kernels, built for the CPU."""
    return build_emulated(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def postgres_urls():
    """URLs of databases, the name of one in place of ``{}``, in a cluster of this run's own."""
    if programs() is None and not os.environ.get("CI"):
        pytest.skip("initdb: not installed (deploy/install_peers.sh)")
    with cluster() as urls:
        yield urls


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    """A database that is not there yet, or is empty: what ``open_store`` takes."""
    return tmp_path / "fastich.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres_database")


@pytest.fixture
def postgres_database(postgres_urls):
    """The URL of an empty database."""
    return create_database(postgres_urls, f"t{secrets.token_hex(8)}")
