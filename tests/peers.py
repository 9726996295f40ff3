"""Programs that tests talk to: absent on a user's machine they are a reason to skip, in CI they are a failure."""

import os
import shutil

import pytest


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where one of ``programs`` is not on the PATH (see ``deploy/install_peers.sh``); run, and fail, in CI."""
    absent = [name for name in programs if shutil.which(name) is None]
    reason = f"{', '.join(absent)}: not installed (deploy/install_peers.sh)"
    return pytest.mark.skipif(bool(absent) and not os.environ.get("CI"), reason=reason)
