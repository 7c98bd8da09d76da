"""The one build step that pyproject.toml cannot express: hostcore is compiled when the package is built."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sandboxd.hostcore.build import build


class BuildWithHostcore(build_py):
    """Copies the package, with `hostcore.wasm` in it. An editable install gets it beside its sources."""

    def run(self) -> None:
        """Compile, then do what setuptools does."""
        build()
        super().run()


setup(cmdclass={"build_py": BuildWithHostcore})
