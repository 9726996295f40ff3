"""``make fuzz``: libFuzzer over the native core under the address and undefined-behaviour sanitizers.

    python tests/fuzz_core.py [--seconds 60] [--corpus DIR]

Needs clang++ with its fuzzer runtime (Debian: clang, libclang-rt-*-dev). Seeds are whole payloads of both modes. Exits
with the fuzzer's status; a crash leaves its input in the working folder.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from fastich.records import codec

PROJECT = Path(__file__).resolve().parents[1]
FLAGS = [
    "-std=c++17", "-O1", "-g", "-w", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
    "-DFASTICH_KEPT_BYTES=0", "-I", str(PROJECT / "kernels"),
]  # fmt: skip
SOURCES = [str(PROJECT / "kernels" / "core.cc"), str(PROJECT / "tests" / "libfuzzer_core.cc")]


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seconds", type=int, default=60, help="for each instruction set (default: 60)")
    made.add_argument("--corpus", type=Path, help="folder of inputs to start from and add to (default: a new one)")
    args = made.parse_args()
    compilers = ["clang++", *(f"clang++-{version}" for version in range(22, 13, -1))]
    clang = next((path for path in map(shutil.which, compilers) if path), None)
    if clang is None:
        print("error: no clang++ found; install clang with its fuzzer runtime", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        corpus = args.corpus or Path(scratch) / "corpus"
        write_seeds(corpus)
        program = Path(scratch) / "fuzz"
        subprocess.run([clang, *FLAGS, *SOURCES, "-o", str(program)], check=True)
        for cpu in ("avx512", "avx2", "baseline"):
            command = [str(program), "-max_len=20000", f"-max_total_time={args.seconds}", str(corpus)]
            status = subprocess.run(command, env={**os.environ, "FASTICH_CPU": cpu}, check=False).returncode
            if status:
                return status
    return 0


def write_seeds(corpus: Path) -> None:
    """Payloads of both modes behind the ten bytes that libfuzzer_core.cc reads first."""
    corpus.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, (height, width, mode) in enumerate(((8, 8, 0), (8, 8, 1), (32, 64, 0), (32, 64, 1), (79, 33, 0))):
        pixels = rng.integers(1000, 1000 + (2 << 3 * number), (height, width)).astype(np.uint16)
        for warped in (0, 1):
            head = bytes([height - 1, width - 1, 1, 15, 0, warped, warped, 3, 130, 120])
            (corpus / f"seed-{number}-{warped}").write_bytes(head + codec.encode_lbp(pixels, mode))


if __name__ == "__main__":
    sys.exit(main())
