"""One build of the programs with its maps: loaded by the child, or found pinned.

A new generation shares the maps of an old one when their layout is the same, so that connections, enrolments and listeners
carry over; when it is not, what keeps pods closed (who is enrolled) is copied before the generation is whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from nodeproxy.errors import KernelError, NodeproxyError, PrivilegeError
from nodeproxy.kernel import abi, bpf
from nodeproxy.kernel.bpf import Map
from nodeproxy.kernel.pins import Pins, remove_tree
from nodeproxy.kernel.programs import PROGRAMS, digest, map_digest

# Compiling and loading takes 2 s on the machine that this was written on; emulated ones are fifty times slower.
_LOAD_TIMEOUT_S = 240
# The verifier's log of one program may be megabytes; what it objects to stands at the end.
_MAX_ERROR_CHARS = 3000
_LOADER_EXIT_PLATFORM = 2
_CARRIED_OVER = ("enrolled", "pods_by_address", "direct")


class Generation:
    """The open programs and maps of a generation.  carried: the direct connections that came from one of another layout."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.carried: frozenset[bytes] = frozenset()
        self.maps = {name: Map.open(directory / "maps" / name) for name in abi.MAPS}
        self.programs = {program.name: bpf.obj_get(directory / "programs" / program.name) for program in PROGRAMS}
        self.program_ids = {name: bpf.program_id(descriptor) for name, descriptor in self.programs.items()}

    def close(self) -> None:
        """Give the descriptors back; the pins keep the objects."""
        for opened in self.maps.values():
            opened.close()
        for descriptor in self.programs.values():
            os.close(descriptor)
        self.programs.clear()


def wanted_name() -> str:
    """The name of the generation that these sources make."""
    return f"{map_digest()}-{digest()}"


def open_or_load(pins: Pins) -> tuple[Generation, bool]:
    """The wanted generation, and whether it was there already.  The caller holds the instance's lock."""
    remove_tree(pins.succeeding)
    generation, found = _find_or_load(pins, pins.loading)
    settle(pins, generation)
    return generation, found


def prepare(pins: Pins) -> tuple[Generation, bool]:
    """The same for an agent that is about to take over from the one that holds the lock, which lets in one at a time.

    One that had to be loaded is used by nothing until `settle`.
    """
    return _find_or_load(pins, pins.succeeding)


def _find_or_load(pins: Pins, loading: Path) -> tuple[Generation, bool]:
    remove_tree(loading)
    whole = pins.generation(wanted_name())
    if whole.is_dir():
        return Generation(whole), True
    older = _newest(pins)
    try:
        loading.mkdir()
        if older is not None and _shares_maps(older):
            _share_maps(older, loading)
        _run_loader(loading)
        return Generation(loading), False
    except BaseException as error:
        remove_tree(loading)
        if isinstance(error, OSError):
            raise KernelError(f"pinning under {pins.directory}: {error.strerror}", error.errno or 0) from error
        raise


def settle(pins: Pins, generation: Generation) -> None:
    """Give a generation that was loaded its name, with all that the one before knows.  The caller holds the instance's lock."""
    if generation.directory not in (pins.loading, pins.succeeding):
        return
    older, whole = _newest(pins), pins.generation(wanted_name())
    try:
        if older is not None and not _shares_maps(older):
            generation.carried = _carry_over(older, generation.directory)
        generation.directory.rename(whole)
    except OSError as error:
        raise KernelError(f"pinning under {pins.directory}: {error.strerror}", error.errno or 0) from error
    finally:
        remove_tree(generation.directory)
    generation.directory = whole


def _newest(pins: Pins) -> Path | None:
    return max(pins.generations(), key=lambda path: path.stat().st_mtime, default=None)


def _shares_maps(older: Path) -> bool:
    return older.name.startswith(map_digest())


def _share_maps(older: Path, younger: Path) -> None:
    (younger / "maps").mkdir()
    for name in abi.MAPS:
        descriptor = bpf.obj_get(older / "maps" / name)
        try:
            bpf.obj_pin(descriptor, younger / "maps" / name)
        finally:
            os.close(descriptor)


def _carry_over(older: Path, younger: Path) -> frozenset[bytes]:
    """Copy who is enrolled, and the live direct connections, to maps of a new layout; the keys of the latter.

    A layout that we cannot copy is an error: skipping it would open the pods, or leave connections that nobody judges again.
    """
    _close_direct_path(older)
    carried: list[bytes] = []
    for name in _CARRIED_OVER:
        if not (older / "maps" / name).exists():  # of a version that had no direct path
            continue
        source, target = Map.open(older / "maps" / name), Map.open(younger / "maps" / name)
        try:
            keys = list(source.all_keys())
            if keys and (source.key_bytes, source.value_bytes) != (target.key_bytes, target.value_bytes):
                raise KernelError(
                    f"map {name} of the running generation has another layout: `nodeproxy uninstall` first, with the pods drained"
                )
            for key in keys:
                if (value := source.get(key)) is not None:
                    target.put(key, value)
            if name == "direct":
                carried = keys
        finally:
            source.close()
            target.close()
    return frozenset(carried)


def _close_direct_path(generation: Path) -> None:
    """So that no connection begins in maps that were copied already: its SYN goes to a worker, who refuses it."""
    path = generation / "maps" / "direct_state"
    if path.exists():
        state = Map.open(path)
        try:
            state.put(bytes(state.key_bytes), bytes(state.value_bytes))
        finally:
            state.close()


def forget_ended(older: Path, younger: Generation) -> None:
    """Direct connections that ended after they were copied and before the programs were switched: nobody else would miss them."""
    if not younger.carried:
        return
    known = Map.open(older / "maps" / "direct")
    try:
        for key in younger.carried:
            if known.get(key) is None:
                younger.maps["direct"].delete(key)
    finally:
        known.close()


def _run_loader(directory: Path) -> None:
    package_root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))}
    try:
        child = subprocess.run(
            [sys.executable, "-m", "nodeproxy.kernel.loader", str(directory)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LOAD_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"loading the eBPF programs took more than {_LOAD_TIMEOUT_S} s") from error
    if child.returncode != 0:
        raise _loader_error(child.returncode, child.stderr.strip())


def _loader_error(status: int, said: str) -> NodeproxyError:
    if len(said) > _MAX_ERROR_CHARS:
        said = "…" + said[-_MAX_ERROR_CHARS:]
    if status == _LOADER_EXIT_PLATFORM:
        return PrivilegeError(said)
    if "Operation not permitted" in said:
        return PrivilegeError(f"loading the eBPF programs: CAP_NET_ADMIN or CAP_SYS_ADMIN is missing; run as root\n{said}")
    return KernelError(f"loading the eBPF programs failed (`nodeproxy check` says what this kernel lacks):\n{said}")
