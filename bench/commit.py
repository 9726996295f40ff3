"""Which version of the code a row was measured with."""

import subprocess
from pathlib import Path


def commit() -> str | None:
    """The short commit of this tree, with ``+`` where files differ from it; None outside git."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")
