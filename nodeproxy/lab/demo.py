"""`nodeproxy demo`: builds the world, tells the steps, removes the world.

Invariant: unless it is to be kept, nothing is left however it ends: done, failed, Ctrl-C, SIGTERM; and what SIGKILL leaves,
`remove_abandoned` finds.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from nodeproxy.errors import NodeproxyError, PrivilegeError
from nodeproxy.lab import demo_signals, demo_sweep
from nodeproxy.lab.demo_mesh import SERVICE, SERVICE_PORT, VIP
from nodeproxy.lab.demo_report import Failed, Report, expect
from nodeproxy.lab.demo_steps import STEPS
from nodeproxy.lab.demo_world import World, in_pod_script

_HINT = "\n`nodeproxy check` says what this machine lacks."


def show(*, keep: bool, as_json: bool, colour: bool) -> int:
    """Show it all; the exit status."""
    if os.geteuid() != 0:
        raise PrivilegeError("the demo makes network namespaces and loads eBPF programs, which needs root: sudo nodeproxy demo")
    demo_signals.listen()
    report = Report(as_json=as_json, colour=colour)
    failure = ""
    try:
        with World() as world:
            _introduce(world, report)
            for title, step in STEPS:
                with report.step(title):
                    step(world, report)
            if keep:
                world.keep()
        with report.step("Kept" if keep else "Nothing is left"):
            if keep:
                report.say(_how_to_play(world))
            else:
                left = demo_sweep.leftovers(world.identifier)
                expect(not left, f"these are left: {', '.join(map(str, left))}")
                report.show("no namespace, cgroup, process, pinned program or file of the demo is left")
    except NodeproxyError as exc:
        # What can't be built at all may be the machine's fault.
        failure = str(exc) if isinstance(exc, Failed | demo_signals.Interrupted) else f"{exc}{_HINT}"
    status = report.end(failure)
    # As a shell tells that a signal ended a program.
    return 128 + demo_signals.noted() if demo_signals.noted() else status


def remove_abandoned(*, as_json: bool) -> int:
    """Remove demos that were kept, or whose process was killed; the exit status."""
    if os.geteuid() != 0:
        raise PrivilegeError("removing a demo needs root: sudo nodeproxy demo --clean")
    removed = list(demo_sweep.abandoned())
    for identifier in removed:
        demo_sweep.sweep(identifier)
    if as_json:
        print(json.dumps({"removed": removed}, indent=2))
    else:
        print(f"Removed: {', '.join(removed)}." if removed else "There was no kept demo.")
    return 0


def _introduce(world: World, report: Report) -> None:
    report.identifier = world.identifier
    names = demo_sweep.prefix(world.identifier)
    report.say(f"Two nodes and an outside host, as network namespaces {names}-… of this machine; a nodeproxy on each node.")
    for node in world.agents:
        pods = ", ".join(f"{pod.name} {pod.host.address4}" for pod in world.pods.values() if pod.node == node)
        report.say(f"  {node}: {pods}")
    endpoints = ", ".join(pod.name for pod in world.servers)
    report.say(f"  {SERVICE} is {VIP}:{SERVICE_PORT}, its endpoints {endpoints}; only frontend may call it.")


def _how_to_play(world: World) -> str:
    command, script = _own_command(), in_pod_script(world)
    instance, other = (agent.instance for agent in world.agents.values())
    return f"""  The nodes run on.  Try:
    {command} status --instance {instance}
    {command} connections --instance {instance} --watch
    {command} why shop/batch {SERVICE}:{SERVICE_PORT} --instance {instance}
    {script} frontend curl http://{VIP}/
    {script} batch curl http://{VIP}/
    tail -f {world.directory}/node-b.log
  Edit the policy in {world.agents["node-b"].mesh} ({other}), and remove it all with:
    {command} demo --clean"""


def _own_command() -> str:
    """What a person types to run nodeproxy: the installed script, or that of the checkout."""
    if shutil.which("nodeproxy"):
        return "nodeproxy"
    checkout = Path(__file__).resolve().parents[2] / "dev"
    return f"{checkout} run" if checkout.is_file() else f"{sys.executable} -m nodeproxy"
