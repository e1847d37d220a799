"""Rolling a node's agent: a successor beside it, and what the one before is afterwards."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nodeproxy.kernel import programs
from tests.mesh.attempts import fast_edits
from tests.mesh.cluster import Agent, MeshPod, wait_until

_HERE = Path(__file__).parent
PORT = 9000
TAKE_S = 40.0  # of which a quiet machine needs one


def successor(agent: Agent, *statements: str) -> Agent:
    """One that is about to take over from `agent`, with a log of its own; it has executed `statements` first."""
    made = Agent(agent.cluster, agent.number)
    made.source = agent.source
    made.arguments = ["--takeover", *(each for each in agent.arguments if each != "--takeover")]
    made.log_path = agent.log_path.with_name(f"{agent.log_path.name}+")
    with fast_edits(*statements):
        made.start(wait=False)
    return made


def took_over(agent: Agent) -> bool:
    assert agent.process is not None
    assert agent.process.poll() is None, agent.log()[-3000:]
    return "took over" in agent.log()


def roll(agent: Agent, *statements: str) -> tuple[Agent, Agent]:
    """(the agent that serves now, the one before, which drains or waits).  The cluster's is the new one."""
    new = successor(agent, *statements)
    wait_until(lambda: took_over(new), "it has taken over", TAKE_S)
    new.wait_ready()
    agent.cluster.agents[agent.number] = new
    return new, agent


def ended(agent: Agent, timeout_s: float = 40.0) -> int:
    """The exit status of one that is to end by itself."""
    assert agent.process is not None
    status = agent.process.wait(timeout_s)
    agent.process = None
    return status


class Load:
    """Connections from a pod to others' greeters, at a pace; see load.py."""

    def __init__(self, source: MeshPod, targets: list[str], rate: float) -> None:
        arguments = [text for address in targets for text in (address, str(PORT))]
        self._program = source.host.popen(
            [sys.executable, str(_HERE / "load.py"), str(rate), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def end(self) -> dict[str, Any]:
        output, _ = self._program.communicate(timeout=30)
        return json.loads(output)


@contextlib.contextmanager
def greeters(pods: list[MeshPod]) -> Iterator[None]:
    """A program in each pod that answers on PORT."""
    with contextlib.ExitStack() as stack:
        for pod in pods:
            program = pod.host.popen(
                [sys.executable, str(_HERE / "knocking.py"), "greet", pod.host.name, str(PORT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.callback(program.communicate)
            assert program.stdout is not None
            program.stdout.readline()
        yield


def later_version(directory: Path, *, other_maps: bool) -> tuple[str, ...]:
    """Statements by which an agent has other eBPF programs, or other maps as well."""
    directory.mkdir()
    for source in programs.source_directory().iterdir():
        (directory / source.name).write_bytes(source.read_bytes())
    changed = directory / ("nodeproxy.h" if other_maps else "sk_lookup.c")
    changed.write_text(changed.read_text() + "\n/* a later version */\n")
    return (
        "import pathlib",
        "from nodeproxy.kernel import generation, programs",
        f"programs.source_directory = lambda: pathlib.Path({str(directory)!r})",
        "run = generation.subprocess.run",
        "code = 'import pathlib, sys; from nodeproxy.kernel import loader, programs;"
        f' programs.source_directory = lambda: pathlib.Path("{directory}"); sys.exit(loader.main(sys.argv[1:]))\'',
        "generation.subprocess.run = lambda command, **options: run([command[0], '-c', code, command[-1]], **options)",
    )
