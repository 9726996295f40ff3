"""The native kernels and nothing else; everything that can be declared stands in pyproject.toml.

Two plain shared libraries are built into the package, neither tied to a Python version:

- ``fastich/_kernels.so``: the codec and the fused decode-window pass (C++17 only), loaded by ``fastich/ops.py``.
- ``fastich/_kernels_dali.so``: the DALI operator over the same core, where DALI is importable at build time.

``FASTICH_KERNELS`` says what happens where one cannot be built: ``auto`` (default) leaves it out and says so, ``1``
makes it an error, ``0`` builds none. ``CXX`` chooses the compiler.
"""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

WISH = os.environ.get("FASTICH_KERNELS", "auto")
CORE = "kernels/core.cc"
HEADERS = [f"kernels/{name}" for name in ("core.h", "rows.h", "lbp.h", "window.h", "lbp_rows.inc", "window_rows.inc")]
FLAGS = ["-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Every instruction set does the same float operations; no-trapping-math lets a clamp become a vector instruction.
FLAGS += ["-ffp-contract=off", "-fno-trapping-math"]
# GCC 12 warns of the undefined operand that its own AVX-512 headers pass on purpose.
QUIET = ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]


class BuildKernels(build_ext):
    """Compile each library by one call of the C++ compiler; a failure is reported, and fatal only where demanded."""

    def get_ext_filename(self, name: str) -> str:
        """The library's path without a Python version in it."""
        return name.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Build one library, or say why it is left out."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            flags = dali_flags() if ext.name.endswith("_dali") else ["-std=c++17"]
            command = [compiler(), *FLAGS, *QUIET, *ext.sources, "-o", str(target), *flags]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(first_error(done.stderr))
        except (RuntimeError, ImportError, OSError) as error:
            if WISH == "1":
                raise SystemExit(f"{ext.name} cannot be built and FASTICH_KERNELS=1 demands it: {error}") from error
            target.unlink(missing_ok=True)
            print(f"fastich: {ext.name} is left out: {error}", file=sys.stderr)


def compiler() -> str:
    """The C++ compiler to call."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise RuntimeError("no C++ compiler (g++ or clang++) found")


def dali_flags() -> list[str]:
    """Flags that build and link against the headers of the installed DALI wheel; DALI 2 needs C++20."""
    sysconfig = importlib.import_module("nvidia.dali.sysconfig")
    include = sysconfig.get_include_dir()
    return [
        "-std=c++20", f"-isystem{include}", *sysconfig.get_compile_flags()[1:],
        *cuda_include(), *sysconfig.get_link_flags(),
    ]  # fmt: skip


def cuda_include() -> list[str]:
    """DALI's headers name CUDA's: from the toolkit, or from the runtime wheel that torch installs."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    found = [Path(home) / "include" for home in homes if home]
    try:
        runtime = importlib.import_module("nvidia.cuda_runtime")
        found.extend(Path(place) / "include" for place in runtime.__path__)
    except ImportError:
        pass
    usable = [place for place in found if (place / "cuda_runtime_api.h").exists()]
    if not usable:
        raise RuntimeError("no CUDA headers found (CUDA_HOME, /usr/local/cuda or nvidia-cuda-runtime)")
    return [f"-isystem{usable[0]}"]


def first_error(output: str) -> str:
    """The compiler's first error, in one line."""
    lines = [line for line in output.splitlines() if "error" in line] or output.splitlines() or ["no output"]
    return lines[0].strip()


setup(
    ext_modules=[]
    if WISH == "0"
    else [
        Extension("fastich._kernels", [CORE], depends=HEADERS, optional=WISH != "1"),
        Extension("fastich._kernels_dali", ["kernels/dali_op.cc", CORE], depends=HEADERS, optional=WISH != "1"),
    ],
    cmdclass={"build_ext": BuildKernels},
)
