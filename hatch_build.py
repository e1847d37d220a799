"""Compiles the modules of the data path into a wheel (mypyc, from the same sources), where there is a C compiler.

Which modules: `pyproject.toml`, the table of this hook.  Without a compiler, or without Python's headers, the wheel is pure: the
same nodeproxy, slower.  A compiler that is there and fails is an error.  HATCH_BUILD_NO_HOOKS=true (hatchling's own) makes a pure
wheel on purpose.
"""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from mypyc.build import mypycify
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError, LinkError

# What is generated lies here, so that a second build of a checkout compiles only if the generated C is another.
BUILD = Path("build") / "mypyc"
# The library that all modules share; beside the package, as each of them looks for it by this name.
GROUP = "nodeproxy"


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own hooks leave its parameter open, too
    """What hatchling calls."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the compiled modules to the wheel; they are found before the sources, which stay beside them."""
        if version == "editable":
            return
        if not _can_compile():
            self.app.display_warning(
                "no C compiler or no headers of Python (Debian: gcc, python3-dev): this wheel is pure Python"
            )
            return
        sources = modules(Path(self.root), self.config)
        for built in _build(mypycify(["--config-file=pyproject.toml", *sources], group_name=GROUP, target_dir=str(BUILD))):
            build_data["force_include"][str(built)] = str(built.relative_to(BUILD / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def modules(root: Path, config: dict[str, Any]) -> list[str]:
    """The files that are compiled, relative to `root`: what the patterns `compiled` name, but not what `interpreted` names."""
    found = {pattern: list(root.glob(pattern)) for pattern in config["compiled"]}
    if missing := [pattern for pattern, paths in found.items() if not paths]:
        raise ValueError(f"pyproject.toml: nothing to compile is named {', '.join(missing)}")
    named = {path for paths in found.values() for path in paths}
    kept_out = {root / name for name in config["interpreted"]}
    return sorted(str(path.relative_to(root)) for path in named - kept_out if path.name != "__init__.py")


def _build(extensions: list[Extension]) -> list[Path]:
    command = _command(extensions, BUILD)
    command.run()
    return [Path(path) for path in command.get_outputs()]


def _can_compile() -> bool:
    """Whether an extension module can be made here at all."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "probe.c"
        source.write_text("#include <Python.h>\nPyMODINIT_FUNC PyInit_probe(void) { return NULL; }\n")
        try:
            _command([Extension("probe", [str(source)])], Path(directory)).run()
        except (CompileError, LinkError, ExecError):
            return False
    return True


def _command(extensions: list[Extension], directory: Path) -> build_ext:
    command = Distribution({"name": GROUP, "ext_modules": extensions}).get_command_obj("build_ext")
    # Beside the interpreter's version, for checkouts that two of them build.
    command.build_temp = str(directory / f"temp-{sys.implementation.cache_tag}-{sysconfig.get_platform()}")
    command.build_lib = str(directory / "lib")
    command.ensure_finalized()
    return command
