"""The agent's part in the runtime's chain of CNI plug-ins: the socket, the list for when it is away, and the plug-in's place.

Invariant: the list is there before the plug-in is installed, and both stay when the agent ends.  It must not know who decides
about pods, nor what any of it looks like.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nodeproxy.agent.pods.cni_keeper import CniKeeper
from nodeproxy.agent.pods.cni_server import CniServer
from nodeproxy.cni.chain import PluginSettings
from nodeproxy.cni.files import NAMESPACES_FILE, write_namespaces
from nodeproxy.cni.install import Installation
from nodeproxy.errors import ConfigError
from nodeproxy.model.cni import SOCKET_FILE, Admitter
from nodeproxy.observe.cni_metrics import CniStatistics

log = logging.getLogger(__name__)

_RETRY_S: Final = 2.0


class CniPart:
    """`start`, then `run` until it is cancelled, then `stop`.

    namespaces: those in which pods may be in the mesh, None as long as nobody has said; `namespaces_changed` is called after a
    change of it.
    """

    def __init__(
        self, admitter: Admitter, namespaces: Callable[[], frozenset[str] | None], run_dir: Path, node_dir: Path
    ) -> None:
        self._pending = admitter.pending
        self._namespaces = namespaces
        self._node_dir = node_dir
        self._run_dir = run_dir
        self._changed = asyncio.Event()
        self._changed.set()
        self._server = CniServer(admitter, run_dir)
        self._keeper: CniKeeper | None = None
        self._list_error = ""

    def keep_installed(self, conf_dir: Path, bin_dir: Path, program: Path, exempt: tuple[str, ...]) -> None:
        """Have `run` see to it that the plug-in stands in the chain there."""
        settings = PluginSettings(self._run_dir / SOCKET_FILE, self._node_dir / NAMESPACES_FILE, exempt)
        self._keeper = CniKeeper(Installation(conf_dir, bin_dir), program, settings, self._pending)

    async def start(self) -> None:
        """Answer the plug-in.  Raises ConfigError."""
        await self._server.start()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_list(), name="cni namespaces")
            if self._keeper is not None:
                tasks.create_task(self._keeper.run(), name="cni keeper")

    async def pause(self) -> None:
        """Another agent takes over: begin nothing, and let the plug-in ask again until that one answers it."""
        await self._server.pause()

    def resume(self) -> None:
        """It does not, after all."""
        self._server.resume()

    async def stop(self) -> None:
        """Answer no more; list and plug-in stay, for they are for the time without an agent."""
        await self._server.stop()

    def namespaces_changed(self) -> None:
        """The list is written soon."""
        self._changed.set()

    def statistics(self) -> CniStatistics:
        """For the metrics."""
        return CniStatistics(
            calls=self._server.calls,
            add_counts=self._server.add_counts,
            add_sum_s=self._server.add_sum_s,
            installed=None if self._keeper is None else self._keeper.file is not None,
        )

    def status(self) -> dict[str, Any]:
        """For `status`.  kept: whether the plug-in is kept in the chain; file: where it stands; error: what is amiss."""
        keeper = self._keeper
        return {
            "kept": keeper is not None,
            "file": str(keeper.file or "") if keeper is not None else "",
            "error": self._list_error or (keeper.error if keeper is not None else ""),
        }

    async def _keep_list(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            names = self._namespaces()
            if names is None:
                continue
            try:
                await asyncio.to_thread(write_namespaces, self._node_dir, names)
                self._list_error = ""
            except ConfigError as error:
                if str(error) != self._list_error:
                    log.error("cni: %s; while the agent is away, the list from before holds", error)
                self._list_error = str(error)
                asyncio.get_running_loop().call_later(_RETRY_S, self._changed.set)
