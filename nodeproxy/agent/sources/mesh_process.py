"""The agent's side of `mesh_loader`: starts it, logs how far it is, and gives it the order to write.

Invariant: the process ends with the `LargeMesh` that it stands for, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import cast

import msgspec

from nodeproxy.agent.sources.mesh_loader import (
    HEADER,
    Parsed,
    Progress,
    Refused,
    Report,
    Touching,
    Unchanged,
    Unwritten,
    Write,
    Written,
)
from nodeproxy.errors import ConfigError, SourceError, StateError
from nodeproxy.model.delta import PodSpec
from nodeproxy.state.store import Meta, StateWriter

# Writing 100,000 workloads takes a second.  A loader that has not done it by then hangs, and with it whoever wants to write.
_WRITE_TIMEOUT_S = 300.0
_MAX_REPORT_BYTES = 16 << 20  # the pods of one node, and an error's text
_WORTH_TELLING_S = 1.0

log = logging.getLogger(__name__)
_decode = msgspec.msgpack.Decoder(Report).decode


class LargeMesh:
    """A mesh file that the loader has read, and can write.  pods: as `Change`."""

    def __init__(self, path: Path, process: asyncio.subprocess.Process) -> None:
        self._path, self._process = path, process
        self._orders = cast("asyncio.StreamWriter", process.stdin)
        self._reports = cast("asyncio.StreamReader", process.stdout)
        self.pods: tuple[PodSpec, ...] = ()

    @classmethod
    async def read(cls, path: Path, store: Path, tried: str) -> tuple[LargeMesh | ConfigError | None, str]:
        """Have it read; what came of it, None if it is what was tried last, and what to take for tried next.

        Raises SourceError.
        """
        module = "nodeproxy.agent.sources.mesh_loader"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, str(path), str(store), tried),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        mesh = cls(path, process)
        try:
            report = await mesh._read()
        except BaseException:
            await mesh.close()
            raise
        if isinstance(report, Parsed):
            mesh.pods = report.pods
            return mesh, report.tried
        await process.wait()
        return (ConfigError(report.reason), report.tried) if isinstance(report, Refused) else (None, tried)

    async def _read(self) -> Parsed | Refused | Unchanged:
        began = time.monotonic()
        report = await self._report()
        while isinstance(report, Progress):
            log.info("%s: %d entries read so far", self._path, report.entries)
            report = await self._report()
        took_s = time.monotonic() - began
        if isinstance(report, Parsed) and took_s > _WORTH_TELLING_S:
            log.info("%s: %d entries read in %.1f s", self._path, report.entries, took_s)
        if isinstance(report, Parsed | Refused | Unchanged):
            return report
        raise self._died(f"said {report}")

    async def write(self, state: StateWriter, meta: Meta) -> None:
        """As `Change`.  Raises SourceError as well."""
        order = msgspec.msgpack.encode(Write(dict(meta)))
        self._orders.write(HEADER.pack(len(order)) + order)
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                report = await self._report()
                if isinstance(report, Touching):
                    state.before_commit(report.touched)
                    self._orders.write(HEADER.pack(0))
                    report = await self._report()
                await self._process.wait()
            if isinstance(report, Unwritten):
                raise StateError(report.reason)
            if not isinstance(report, Written):
                raise self._died(f"said {report}")
        except TimeoutError:
            raise self._died(f"has not written it within {_WRITE_TIMEOUT_S:.0f} s") from None
        finally:
            await self.close()
            state.see_lent()  # even if it failed: it may have ended between the writing and the report of it

    async def close(self) -> None:
        """End the loader."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _report(self) -> Report:
        """What it says next.  Raises SourceError."""
        try:
            (length,) = HEADER.unpack(await self._reports.readexactly(HEADER.size))
            if length > _MAX_REPORT_BYTES:
                raise self._died(f"has {length} bytes to say")
            return cast("Report", _decode(await self._reports.readexactly(length)))
        except asyncio.IncompleteReadError:
            status = await self._process.wait()
            if status < 0:
                raise self._died(f"ended by signal {-status}, perhaps for want of memory") from None
            raise self._died(f"ended with status {status}, see its last words") from None
        except msgspec.MsgspecError as exc:
            raise self._died(f"is of another version ({exc}), restart `nodeproxy run`") from exc

    def _died(self, how: str) -> SourceError:
        return SourceError(f"{self._path}: the process that reads it {how}; it is read again soon")
