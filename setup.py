"""What pyproject.toml cannot express: hostcore is compiled, and the filters are copied, when the package is built."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sandboxd.hostcore.build import build

ROOT = Path(__file__).resolve().parent


class BuildWithHostcore(build_py):
    """Copies the package, with `hostcore.wasm` in it. An editable install gets it beside its sources."""

    def run(self) -> None:
        """Compile, do what setuptools does, and put the system call filters beside the jail."""
        build()
        super().run()
        if not self.editable_mode:  # a checkout has them under policies
            seccomp = Path(self.build_lib) / "sandboxd" / "jail" / "seccomp"
            shutil.copytree(ROOT / "policies" / "seccomp", seccomp, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithHostcore})
