"""Who decides about pods for the CNI plug-in's server, as a test directs it; and the server with it, in a thread."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import TracebackType

from nodeproxy.agent.pods.cni import CniPart
from nodeproxy.errors import EnrolmentError
from nodeproxy.model.cni import Admission, Attachment, CniAdd


class FakeAdmitter:
    """An `Admitter`: pods of namespace "shop" are in the mesh; what is not so is set by the test."""

    def __init__(self) -> None:
        self.waits_for = ""
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.admitted: dict[Attachment, CniAdd] = {}

    async def admit(self, request: CniAdd) -> Admission:
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        self.admitted[Attachment(request.container_id, request.ifname)] = request
        return Admission(request.namespace == "shop", f"{request.namespace} is labelled, or not")

    async def gone(self, attachment: Attachment) -> None:
        self.admitted.pop(attachment, None)

    async def check(self, request: CniAdd) -> None:
        if Attachment(request.container_id, request.ifname) not in self.admitted:
            raise EnrolmentError("it is not in the mesh")

    async def keep(self, valid: frozenset[Attachment]) -> None:
        self.admitted = {each: pod for each, pod in self.admitted.items() if each in valid}

    def pending(self) -> str:
        return self.waits_for


class Answering:
    """An agent's CNI part with nothing behind it, in a thread of its own.  namespaces: those of the mesh."""

    def __init__(self, run_dir: Path, node_dir: Path, namespaces: frozenset[str] = frozenset({"shop"})) -> None:
        self.admitter = FakeAdmitter()
        self.part: CniPart
        self._paths = (run_dir, node_dir)
        self._namespaces: frozenset[str] | None = namespaces
        self._installed: tuple[Path, Path, Path, tuple[str, ...]] | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main)
        self._stopping: asyncio.Event

    def keep_installed(self, conf_dir: Path, bin_dir: Path, program: Path, exempt: tuple[str, ...]) -> None:
        """To be called before it begins."""
        self._installed = (conf_dir, bin_dir, program, exempt)

    def say(self, namespaces: frozenset[str] | None) -> None:
        """The mesh has these namespaces now."""
        self._namespaces = namespaces
        self._loop.call_soon_threadsafe(self.part.namespaces_changed)

    def __enter__(self) -> Answering:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _main(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self.part = CniPart(self.admitter, lambda: self._namespaces, *self._paths)
        if self._installed is not None:
            self.part.keep_installed(*self._installed)
        await self.part.start()
        running = asyncio.create_task(self.part.run())
        self._ready.set()
        await self._stopping.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await self.part.stop()
