"""`nodeproxy uninstall`: what agents that have ended left in kernel, pods and file system."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

from nodeproxy.agent.remembered import remembered_netns
from nodeproxy.agent.run_dir import LOCK_FILE, store_of
from nodeproxy.cni.install import Installation
from nodeproxy.config import RUN_ROOT
from nodeproxy.errors import ConfigError, KernelError, NodeproxyError
from nodeproxy.kernel.pins import ROOT as PINS
from nodeproxy.kernel.steering import Steering
from nodeproxy.linux import cgroup
from nodeproxy.linux.netns import open_netns
from nodeproxy.linux.netns_search import pod_namespaces
from nodeproxy.linux.routes import disable_last_leg

log = logging.getLogger(__name__)


def uninstall(instance: str, run_dir: Path, cgroup_root: Path | None) -> None:
    """Remove it all; its pods are plain again.  Raises KernelError while the agent runs, ConfigError for a directory that is no
    agent's."""
    Steering.uninstall(instance)
    for path in remembered_netns(store_of(run_dir)):
        _tidy_pod(path)
    remove_run_directory(run_dir)
    _remove_cgroup(cgroup.instance_cgroup(cgroup_root or cgroup.cgroup2_mount(), instance))


def uninstall_node(cgroup_root: Path | None, node_dir: Path, plugin: Installation) -> list[str]:
    """Remove whatever agents left on this node, and return the names of their instances.

    What is no agent's is left alone.  Raises KernelError while one of them runs.
    """
    root = cgroup_root or cgroup.cgroup2_mount()
    instances = sorted({*_folders(PINS), *(name.removeprefix(cgroup.PREFIX) for name in _folders(root, cgroup.PREFIX))})
    for instance in instances:
        Steering.uninstall(instance)
        _remove_cgroup(cgroup.instance_cgroup(root, instance))
    plugin.uninstall()
    for netns_fd in pod_namespaces():  # also of pods that no agent remembers
        disable_last_leg(netns_fd)
    for directory in (PINS, RUN_ROOT, node_dir):
        _remove_tree(directory)
    return instances


def remove_run_directory(directory: Path) -> None:
    """Remove an ended agent's run directory.  Raises ConfigError for a directory that is none."""
    if not directory.exists():
        return
    if not (directory / LOCK_FILE).is_file():
        raise ConfigError(f"{directory} is no agent's run directory (it has no file {LOCK_FILE!r}); it was left alone")
    _remove_tree(directory)


def _folders(directory: Path, prefix: str = "") -> list[str]:
    """The names of those in `directory`, which may not be there, that begin so."""
    if not directory.is_dir():
        return []
    return [path.name for path in directory.iterdir() if path.is_dir() and path.name.startswith(prefix)]


def _remove_tree(directory: Path) -> None:
    """Remove it, or what is in it where it is a mount, as in a container."""
    try:
        if os.path.ismount(directory):
            for path in directory.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif directory.exists():
            shutil.rmtree(directory)
    except OSError as error:
        raise ConfigError(f"can't remove {error.filename or directory}: {error.strerror}") from error


def _tidy_pod(path: str) -> None:
    """Rules and routes of the last leg, in a pod that may have gone meanwhile."""
    if not os.path.exists(path):
        return
    try:
        netns_fd = open_netns(path)
    except NodeproxyError:
        return  # it is no namespace any more: there is nothing in it
    try:
        disable_last_leg(netns_fd)
    except NodeproxyError as error:
        log.warning("%s keeps the rules of the last leg: %s", path, error)
    finally:
        os.close(netns_fd)


def _remove_cgroup(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        busy = "processes are still in it" if error.errno == errno.EBUSY else error.strerror
        raise KernelError(f"cgroup {path} stays: {busy}", error.errno or 0) from error
