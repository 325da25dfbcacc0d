"""The packages, and wheels with compiled kernels: LTHFUNC_WHEEL_KERNELS="x86-64-v3 x86-64-v4" (or armv8-a) brings them.

Everything else is in pyproject.toml.
"""

import os
import shutil
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = os.environ.get("LTHFUNC_WHEEL_KERNELS", "").split()


class BuildWithKernels(build_py):
    """Copies the packages, and compiles a library of kernels for each of the instruction sets."""

    def run(self) -> None:
        super().run()
        torch = find_spec("torch")
        if torch is None or torch.origin is None:
            raise SystemExit("LTHFUNC_WHEEL_KERNELS: torch must be installed (python -m build --wheel --no-isolation)")
        source = Path(__file__).parent / "lthfunc" / "sparse" / "kernels" / "compilation.py"
        spec = spec_from_file_location("compilation", source)
        assert spec is not None
        assert spec.loader is not None
        compilation = module_from_spec(spec)
        spec.loader.exec_module(compilation)
        folder = Path(self.build_lib, "lthfunc", "sparse", "kernels", compilation.PREBUILT.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for march in KERNELS:
            compilation.compile_library(
                os.environ.get("CXX", "c++"), [*compilation.FLAGS, f"-march={march}"], Path(torch.origin).parent,
                folder / compilation.prebuilt_name(march), os.cpu_count() or 1,
            )  # fmt: skip


class DistributionWithKernels(Distribution):
    """Not the same for all machines."""

    def has_ext_modules(self) -> bool:
        return True


class WheelOfPlatform(bdist_wheel):
    """A wheel for one kind of machine, but for any Python: the kernels don't know of it."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    packages=[*find_packages(include=["lthfunc", "lthfunc.*"]), "lthfunc_cli"],
    # The folder is called cli; a global package of that name would be rude, so it is installed as lthfunc_cli.
    package_dir={"lthfunc": "lthfunc", "lthfunc_cli": "cli"},
    **(
        {
            "distclass": DistributionWithKernels,
            "cmdclass": {"build_py": BuildWithKernels, "bdist_wheel": WheelOfPlatform},
        }
        if KERNELS
        else {}
    ),
)
