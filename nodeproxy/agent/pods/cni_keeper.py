"""Keeps the CNI plug-in in the chain that the runtime uses, whoever rewrites that.

Invariant: the chain names the plug-in only when somebody answers it, and when it knows whom to hold back while nobody does; an
agent that ends leaves it there, for that is when it is needed.  It must not know what a chain looks like.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nodeproxy.cni.chain import PluginSettings
from nodeproxy.cni.install import Installation
from nodeproxy.errors import ConfigError, KernelError, NodeproxyError
from nodeproxy.linux.inotify import Watch

log = logging.getLogger(__name__)

# A change is seen at once; this is for what inotify does not tell, such as a directory that comes.
_LOOK_AGAIN_S: Final = 2.0
# The same as long as it could not be installed: pods start meanwhile.
_TRY_AGAIN_S: Final = 0.25
# Another that takes us out each time we put us in: no more often than this.
_PAUSE_S: Final = 0.1


class CniKeeper:
    """`file` is where the plug-in stands, None if it does not, and then `error` says why."""

    def __init__(self, installation: Installation, program: Path, settings: PluginSettings, pending: Callable[[], str]) -> None:
        """pending: why no pod could be admitted, as `Admitter.pending`."""
        self.file: Path | None = None
        self.error = "not looked at yet"
        self._installation = installation
        self._program = program
        self._settings = settings
        self._pending = pending

    async def run(self) -> None:
        """Until cancelled."""
        directories = (self._installation.conf_dir, self._installation.bin_dir)
        try:
            watch = Watch()
        except KernelError as error:
            log.warning("cni: %s; changes of %s are noticed later", error, directories[0])
            while True:
                await self._install()
                await asyncio.sleep(self._look_again_s)
        try:
            while True:
                watch.look_at(directories)
                await self._install()
                await asyncio.sleep(_PAUSE_S)
                await watch.wait_change(self._look_again_s)
        finally:
            watch.close()

    @property
    def _look_again_s(self) -> float:
        return _TRY_AGAIN_S if self.file is None else _LOOK_AGAIN_S

    async def _install(self) -> None:
        try:
            if self.file is None:
                self._require_answers()
            file, changed = await asyncio.to_thread(self._installation.install, self._program, self._settings)
        except NodeproxyError as error:
            if str(error) != self.error:
                log.warning("cni: the plug-in is not in the chain: %s", error)
            self.file, self.error = None, str(error)
            return
        if changed or file != self.file:
            log.info("cni: the plug-in stands in %s", file)
        self.file, self.error = file, ""

    def _require_answers(self) -> None:
        if pending := self._pending():
            raise ConfigError(f"the agent is not ready for it: {pending}")
        if not self._settings.namespaces_file.exists():
            raise ConfigError(f"the list of the mesh's namespaces, {self._settings.namespaces_file}, is not written yet")
