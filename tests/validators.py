"""What DCMTK's and dicom3tools' programs say of a DICOM file."""

import subprocess
from pathlib import Path

EXPLAINED = (
    "Unrecognized defined term <99FASTICH>",  # our private coding scheme is declared in CodingSchemeIdentification
    "needed to build DICOMDIR",  # what the source images lack, the object lacks too
    "Retired Person Name form",  # a name as the source images have it
)
"""Warnings of dciodvfy that are understood; any other fails a test."""


def assert_valid(path: Path, iod: str) -> None:
    """dciodvfy finds no error and no unexplained warning in a file of this IOD; dcmdump reads it without a word."""
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    lines = [line for line in (said.stdout + said.stderr).splitlines() if line.strip()]
    assert iod in lines, lines
    left = [line for line in lines if line != iod and not any(known in line for known in EXPLAINED)]
    assert left == []
    dump = subprocess.run(["dcmdump", path], capture_output=True, text=True, check=False)
    assert dump.returncode == 0
    assert dump.stderr == ""


def report_text(path: Path) -> str:
    """The report as dsrdump prints it in full; it refuses what is no valid report."""
    said = subprocess.run(["dsrdump", "+Pl", "+Pn", path], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stderr == ""
    return said.stdout
