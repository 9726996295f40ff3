"""The native kernels and nothing else; everything that can be declared stands in pyproject.toml.

Plain shared libraries are built into the package, none tied to a Python version:

- ``fastich/_kernels.so``: the codec and the fused decode-window pass (C++17 only), loaded by ``fastich/ops.py``.
- ``fastich/_kernels_cuda.so``: the same for payloads in GPU memory, where nvcc is found (``fastich/ops_cuda.py``).
- ``fastich/_kernels_dali.so``: the DALI operator over both, where DALI is importable at build time; its CPU half alone
  where there is no nvcc.

``FASTICH_KERNELS`` says what happens where one cannot be built: ``auto`` (default) leaves it out and says so, ``1``
makes it an error (CUDA only where there is an nvcc), ``0`` builds none. ``CXX`` chooses the compiler, ``FASTICH_NVCC``
names an nvcc that is neither on PATH nor below CUDA_HOME or /usr/local/cuda.
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
GPU = "kernels/gpu.cu"
DALI, DALI_GPU = "kernels/dali_op.cc", "kernels/dali_gpu_op.cc"
HEADERS = [str(path) for pattern in ("*.h", "*.inc", "*.cuh") for path in sorted(Path("kernels").glob(pattern))]
FLAGS = ["-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Every instruction set does the same float operations; no-trapping-math lets a clamp become a vector instruction.
FLAGS += ["-ffp-contract=off", "-fno-trapping-math"]
# GCC 12 warns of the undefined operand that its own AVX-512 headers pass on purpose.
QUIET = ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
# A100, A40, L4 and H100, with PTX for what comes after.
TARGETS = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_86,code=sm_86",
           "-gencode=arch=compute_89,code=sm_89", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]  # fmt: skip


class NoNvcc(RuntimeError):
    """There is no CUDA compiler: never an error, whatever is demanded."""


class BuildKernels(build_ext):
    """Compile each library by one call of a compiler; a failure is reported, and fatal only where demanded."""

    def get_ext_filename(self, name: str) -> str:
        """The library's path without a Python version in it."""
        return name.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Build one library, or say why it is left out."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            run([*self.command(ext), "-o", str(target)])
        except (RuntimeError, ImportError, OSError) as error:
            if WISH == "1" and not isinstance(error, NoNvcc):
                raise SystemExit(f"{ext.name} cannot be built and FASTICH_KERNELS=1 demands it: {error}") from error
            target.unlink(missing_ok=True)
            print(f"fastich: {ext.name} is left out: {error}", file=sys.stderr)

    def command(self, ext: Extension) -> list[str]:
        """The call that makes the library of ``ext``, without its target."""
        if ext.name.endswith("_cuda"):
            return [*cuda_linker(), str(self.gpu_object())]
        if not ext.name.endswith("_dali"):
            return [compiler(), *FLAGS, *QUIET, *ext.sources, "-std=c++17"]
        flags, libraries = dali_flags()
        try:
            gpu = [str(self.gpu_object()), DALI_GPU]
        except RuntimeError:  # the CUDA library has said why
            return [compiler(), *FLAGS, *QUIET, *ext.sources, *flags, *cuda_include(), *libraries]
        return [*cuda_linker(), *(f"-Xcompiler={flag}" for flag in flags), *ext.sources, *gpu, *libraries]

    def gpu_object(self) -> Path:
        """The compiled kernels, made once for the two libraries that hold them.

        Raises:
            NoNvcc: there is no CUDA compiler.
            RuntimeError: it failed.
        """
        target = Path(self.build_temp) / "gpu.o"
        sources = ["setup.py", GPU, *HEADERS]
        if not target.exists() or any(target.stat().st_mtime < Path(source).stat().st_mtime for source in sources):
            target.parent.mkdir(parents=True, exist_ok=True)
            host = ["-Xcompiler=-fPIC", "-Xcompiler=-fvisibility=hidden"]
            run([nvcc(), "-ccbin", compiler(), "-std=c++17", "-O3", "--threads=4", *TARGETS, *host, "-c", GPU, "-o",
                 str(target)])  # fmt: skip
        return target


def run(command: list[str]) -> None:
    """Run a compiler; raises its first error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(first_error(done.stdout + done.stderr))


def nvcc() -> str:
    """The CUDA compiler to call."""
    wish = os.environ.get("FASTICH_NVCC")
    if wish and not shutil.which(wish):
        raise RuntimeError(f"FASTICH_NVCC names {wish}, which cannot be run")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    for name in (wish, "nvcc", *(f"{home}/bin/nvcc" for home in homes if home)):
        if name and shutil.which(name):
            return name
    raise NoNvcc(
        "no nvcc found (FASTICH_NVCC, PATH, CUDA_HOME, /usr/local/cuda), nor is there a GPU half of the others"
    )


def cuda_linker() -> list[str]:
    """nvcc as a compiler of C++ and linker: it knows where its static runtime lies."""
    host = [f"-Xcompiler={flag}" for flag in (*FLAGS, *QUIET) if flag != "-shared"]
    return [nvcc(), "-ccbin", compiler(), "-cudart=static", "-shared", *host]


def compiler() -> str:
    """The C++ compiler to call."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise RuntimeError("no C++ compiler (g++ or clang++) found")


def dali_flags() -> tuple[list[str], list[str]]:
    """Flags that build against the headers of the installed DALI wheel, and those that link; DALI 2 needs C++20."""
    sysconfig = importlib.import_module("nvidia.dali.sysconfig")
    include = sysconfig.get_include_dir()
    return ["-std=c++20", f"-isystem{include}", *sysconfig.get_compile_flags()[1:]], sysconfig.get_link_flags()


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
        Extension("fastich._kernels_cuda", [GPU], depends=HEADERS, optional=WISH != "1"),
        Extension("fastich._kernels_dali", [DALI, CORE], depends=[*HEADERS, DALI_GPU], optional=WISH != "1"),
    ],
    cmdclass={"build_ext": BuildKernels},
)
