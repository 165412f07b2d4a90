"""`pip install .`: builds libquire.so and the program by CMake and puts them into the package. ctypes loads it, so one wheel serves every
Python 3 on the platform. The build needs what `./dev install` installs."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        build = ROOT / "build"
        if not (build / "build.ninja").exists():
            subprocess.run(["cmake", "--preset", "release"], cwd=ROOT, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "quire_shared", "quire"], cwd=ROOT, check=True)
        package = Path(self.build_lib) / "quire"
        package.mkdir(parents=True, exist_ok=True)
        for name in ("libquire.so", "quire"):
            shutil.copy2(build / name, package / name)


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: no Python ABI, but machine code."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        _python, _abi, platform = super().get_tag()
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
