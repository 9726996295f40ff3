"""setup.py: which libraries it builds, and what it says of those that it leaves out. Compilers are stand-ins here."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
pytest.importorskip("nvidia.dali")

# A compiler that writes its arguments where -o points, or fails.
WORKS = '#!/bin/sh\nall="$*"\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && echo "$0 $all" > "$2"; shift; done\n'
FAILS = "#!/bin/sh\necho 'gpu.cu(1): error: no such luck' >&2\nexit 1\n"
WITHOUT_NVCC = (
    "import runpy, shutil, sys; which = shutil.which; sys.argv = ['setup.py', *sys.argv[1:]]\n"
    "shutil.which = lambda name, *rest: None if name.endswith('nvcc') else which(name, *rest)\n"
    "runpy.run_path('setup.py', run_name='__main__')"
)


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def build(folder: Path, nvcc: str | None, wish: str) -> tuple[subprocess.CompletedProcess, dict[str, str]]:
    """The finished call and {library: how it was made}; nvcc is the text of a stand-in, a path, or None for none."""
    environment = {**os.environ, "CXX": script(folder / "cxx", WORKS), "FASTICH_KERNELS": wish}
    if nvcc is not None:
        environment["FASTICH_NVCC"] = script(folder / "nvcc", nvcc) if nvcc.startswith("#!") else nvcc
    arguments = ["build_ext", "--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    start = ["-c", WITHOUT_NVCC] if nvcc is None else ["setup.py"]
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        capture_output=True, text=True, check=False, cwd=PROJECT, env=environment,
    )  # fmt: skip
    return done, {path.stem: path.read_text() for path in (folder / "lib").rglob("*.so")}


@pytest.mark.parametrize("wish", ["auto", "1"])
def test_with_nvcc_all_three_libraries_are_built_and_dali_has_both_halves(tmp_path, wish):
    done, made = build(tmp_path, WORKS, wish)
    assert done.returncode == 0, done.stderr
    assert set(made) == {"_kernels", "_kernels_cuda", "_kernels_dali"}
    assert "left out" not in done.stderr
    assert "kernels/dali_gpu_op.cc" in made["_kernels_dali"]
    assert "-cudart=static" in made["_kernels_cuda"]
    compiled = (tmp_path / "temp" / "gpu.o").read_text()
    for target in ("code=sm_80", "code=sm_86", "code=sm_89", "code=[sm_90,compute_90]"):
        assert target in compiled


@pytest.mark.parametrize("wish", ["auto", "1"])
def test_without_nvcc_the_cpu_half_alone_is_built_and_nothing_fails(tmp_path, wish):
    done, made = build(tmp_path, None, wish)
    assert done.returncode == 0, done.stderr
    assert set(made) == {"_kernels", "_kernels_dali"}
    assert "kernels/dali_gpu_op.cc" not in made["_kernels_dali"]
    (line,) = [line for line in done.stderr.splitlines() if "left out" in line]
    assert line.startswith("fastich: fastich._kernels_cuda is left out: no nvcc found (FASTICH_NVCC, PATH, CUDA_HOME")


def test_an_nvcc_that_fails_leaves_the_gpu_out_with_its_first_error(tmp_path):
    done, made = build(tmp_path, FAILS, "auto")
    assert done.returncode == 0
    assert set(made) == {"_kernels", "_kernels_dali"}
    assert "fastich._kernels_cuda is left out: gpu.cu(1): error: no such luck" in done.stderr


def test_an_nvcc_that_fails_is_an_error_where_kernels_are_demanded(tmp_path):
    done, _ = build(tmp_path, FAILS, "1")
    assert done.returncode != 0
    assert "fastich._kernels_cuda cannot be built and FASTICH_KERNELS=1 demands it: gpu.cu(1): error" in done.stderr


def test_an_nvcc_that_is_named_but_absent_is_said(tmp_path):
    done, _ = build(tmp_path, "/nowhere/nvcc", "auto")
    assert "fastich._kernels_cuda is left out: FASTICH_NVCC names /nowhere/nvcc, which cannot be run" in done.stderr


def test_no_kernels_are_built_where_none_are_wished_for(tmp_path):
    done, made = build(tmp_path, WORKS, "0")
    assert done.returncode == 0
    assert not made
