"""Drives CMake for the C++ and CUDA kernels; everything else about the package is in pyproject.toml.

HSTA_BUILD_CPU=0 installs without compiling: the library then runs on its reference backend.
HSTA_BUILD_CUDA=1 also builds the CUDA kernels, HSTA_BUILD_CUDA=0 does not; where it is not set they are built if this
machine has nvcc and an NVIDIA GPU. HSTA_CUDA_ARCHS says for which GPU architectures; by default for this machine's, or
else for 80;90a;100.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
if "HSTA_BUILD_NATIVE" in os.environ:
    print("hsta-kernels: HSTA_BUILD_NATIVE is now called HSTA_BUILD_CPU", file=sys.stderr)
    os.environ.setdefault("HSTA_BUILD_CPU", os.environ["HSTA_BUILD_NATIVE"])
BUILD = os.environ.get("HSTA_BUILD_CPU", "1") != "0"


CPU, CUDA = "hsta_kernels._cpu", "hsta_kernels._cuda"


def modules() -> list[str]:
    """The extension modules to build."""
    if not BUILD:
        return []
    wanted = os.environ.get("HSTA_BUILD_CUDA")
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if wanted == "1" and nvcc is None:
        raise SystemExit("hsta-kernels: HSTA_BUILD_CUDA=1 needs nvcc, and it was not found; install the CUDA toolkit.")
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    return [CPU, CUDA] if nvcc and (has_gpu if wanted is None else wanted == "1") else [CPU]


class CMakeBuild(build_ext):
    def build_extensions(self) -> None:
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None or shutil.which(compiler.split()[0]) is None:
            raise SystemExit(
                "hsta-kernels: no C++ compiler was found; install one (Debian and Ubuntu: apt install g++; "
                "Fedora: dnf install gcc-c++; macOS: xcode-select --install), "
                "or set HSTA_BUILD_CPU=0 to install without compiling."
            )
        import pybind11

        outputs = {ext.name: Path(self.get_ext_fullpath(ext.name)).resolve() for ext in self.extensions}
        names = {name: output.name for name, output in outputs.items()}
        archs = os.environ.get("HSTA_CUDA_ARCHS", "")
        build = ROOT / "build" / f"kernels-{sys.implementation.cache_tag}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DHSTA_OUTPUT_NAME={names[CPU]}",
            f"-DHSTA_CUDA_OUTPUT_NAME={names.get(CUDA, '')}", f"-DHSTA_CUDA_ARCHS={archs}",
        ]  # fmt: skip
        # Build isolation hands out a new folder for cmake, ninja and pybind11 every time: remember none of it.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
        except subprocess.CalledProcessError:
            raise SystemExit(
                "hsta-kernels: the kernels could not be compiled; what the compiler said is above. They take GCC 11 or "
                "Clang 12, or later: name one with CXX=, or set HSTA_BUILD_CPU=0 to install without compiling."
            ) from None
        for output in outputs.values():
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(build / output.name, output)


setup(
    packages=[*find_packages(include=["hsta_kernels", "hsta_kernels.*"]), *find_packages("python")],
    package_dir={"hsta_kernels": "hsta_kernels", "hsta": "python/hsta"},
    ext_modules=[Extension(name, sources=[]) for name in modules()],
    cmdclass={"build_ext": CMakeBuild},
)
