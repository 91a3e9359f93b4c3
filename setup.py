"""Drives CMake for the native kernels; everything else about the package is in pyproject.toml.

HSTA_BUILD_NATIVE=0 installs without native code: the library then runs on its reference backend.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_NATIVE = os.environ.get("HSTA_BUILD_NATIVE", "1") != "0"


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None or shutil.which(compiler.split()[0]) is None:
            raise SystemExit(
                "hsta-kernels: no C++ compiler was found; install one (Debian and Ubuntu: apt install g++; "
                "Fedora: dnf install gcc-c++; macOS: xcode-select --install), "
                "or set HSTA_BUILD_NATIVE=0 to install without native kernels."
            )
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DHSTA_OUTPUT_NAME={output.name}",
        ]  # fmt: skip
        # Build isolation hands out a new folder for cmake, ninja and pybind11 every time: remember none of it.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build / output.name, output)


setup(
    packages=[*find_packages(include=["hsta_kernels", "hsta_kernels.*"]), *find_packages("python")],
    package_dir={"hsta_kernels": "hsta_kernels", "hsta": "python/hsta"},
    ext_modules=[Extension("hsta_kernels._native", sources=[])] if BUILD_NATIVE else [],
    cmdclass={"build_ext": CMakeBuild},
)
