"""Steering as the agent sees it: enrol a pod, let it go, say which listeners the workers have.

Invariant: from the moment that a pod is enrolled until it leaves, its TCP is led to a worker or refused, whatever dies
meanwhile; no step here, taken alone, opens it.  All state is pinned, so an agent that starts again adopts it.  Knows
nothing of routes, sockets or policy.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from nodeproxy.errors import ConfigError, EnrolmentError, KernelError
from nodeproxy.kernel import abi, bpf
from nodeproxy.kernel.abi import Drop, Role
from nodeproxy.kernel.direct import DirectTable
from nodeproxy.kernel.generation import Generation, forget_ended, open_or_load, prepare, settle
from nodeproxy.kernel.pins import Pins, pin_beside, remove_tree
from nodeproxy.kernel.probes import ProbeTable
from nodeproxy.kernel.programs import CGROUP_PROGRAMS, SK_LOOKUP, Program

_ZERO = struct.pack("=I", 0)


@dataclass(frozen=True, slots=True)
class PodSteering:
    """A pod to enrol.  addresses: canonical text; the first of each family is where the pod's own connects are led."""

    netns_fd: int
    netns_cookie: int
    addresses: tuple[str, ...]


class Steering:
    """The eBPF side of one instance.  `adopted`: it was pinned before, nothing had to be loaded.

    One agent holds an instance.  Another may `prepare` beside it, and `take` it when it gets the lock: then pods are enrolled one
    by one, whereby their listeners take the place of those before, and `attach` switches the programs, if they are others.
    """

    def __init__(self, pins: Pins, lock: int, generation: Generation, adopted: bool) -> None:
        self.adopted = adopted
        self._pins = pins
        self._lock = lock
        self._waiting: dict[int, PodSteering] | None = None  # pods to attach with the programs; None: they are attached
        self._generation = generation
        self._maps = generation.maps
        self.original_destination_fd = self._maps["original_destination"].fd
        self.direct = DirectTable(self._maps)
        self.probes = ProbeTable(self._maps)
        # netns cookie → keys of the map: a look through the map itself would make each enrolment cost what all pods have.
        self._addresses: dict[int, set[bytes]] = {}

    @classmethod
    def open(cls, instance: str, cgroup_root: Path, *, own_cgroup_id: int, workers: int) -> Steering:
        """Load what is not there, adopt what is, attach to `cgroup_root`, and switch what an older nodeproxy left to this one.

        own_cgroup_id: the cgroup (inode of its directory) of agent and workers; what runs in it is never steered.
        """
        if not 1 <= workers <= abi.MAX_SLOTS:
            raise ConfigError(f"workers: {workers} is not between 1 and {abi.MAX_SLOTS}")
        pins = Pins(instance)
        lock = pins.lock()
        try:
            generation, adopted = open_or_load(pins)
            steering = cls(pins, lock, generation, adopted)
            steering.take(lock, own_cgroup_id=own_cgroup_id, workers=workers)
            steering.attach(cgroup_root)
            steering.forget_others()
        except BaseException:
            os.close(lock)
            raise
        return steering

    @classmethod
    def prepare(cls, instance: str) -> Steering:
        """Load what is not there while another agent holds the instance.  Nothing is steered by it before `take`."""
        pins = Pins(instance)
        return cls(pins, -1, *prepare(pins))

    def take(self, lock: int, *, own_cgroup_id: int, workers: int) -> None:
        """Hold the instance, or hold it again.  lock: its lock, the steering's from now on.  `attach` must follow."""
        self._lock = lock
        settle(self._pins, self._generation)
        self._maps["config"].put(_ZERO, abi.CONFIG.pack(own_cgroup_id, workers, 0))
        self._addresses.clear()
        for key in self._maps["pods_by_address"].all_keys():
            if (value := self._maps["pods_by_address"].get(key)) is not None:
                self._addresses.setdefault(abi.OWNER.unpack(value)[0], set()).add(key)
        self.direct.hold()
        self.probes.hold()
        self._waiting = {}

    def attach(self, cgroup_root: Path) -> None:
        """Switch to these programs whatever is attached, with the pods that were enrolled since `take`."""
        self._attach_pods()
        self._attach_cgroup(cgroup_root)
        waiting, self._waiting = self._waiting or {}, None
        for pod in waiting.values():
            self._attach_pod(pod)

    def forget_others(self) -> None:
        """Unpin what other versions left: nobody uses it any more."""
        for old in self._pins.generations():
            if old != self._generation.directory:
                forget_ended(old, self._generation)
                remove_tree(old)

    def take_lock(self) -> int:
        """The instance's lock, of an agent that is no more.  Raises KernelError if another one has it."""
        return self._pins.lock()

    @property
    def lock(self) -> int:
        """The descriptor that holds the instance, -1: it is another agent's."""
        return self._lock

    def let_go(self) -> None:
        """The instance is another agent's, to whom the lock was passed."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def close(self) -> None:
        """Release the instance; steering stays as it is."""
        self.direct.unmap()
        self._generation.close()
        self.original_destination_fd = -1
        self.let_go()

    # ── attaching ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _attach_cgroup(self, cgroup_root: Path) -> None:
        try:
            target = os.open(cgroup_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"cgroup root {cgroup_root}: {error.strerror}") from error
        try:
            cgroup_id = os.fstat(target).st_ino
            for program in CGROUP_PROGRAMS:
                self._attach(program, self._pins.links / program.name, target, cgroup_id)
        finally:
            os.close(target)

    def _attach_pods(self) -> None:
        """Switch adopted pods to this generation; forget those whose network namespace has gone."""
        for cookie in self._pins.pod_cookies():
            path = self._pins.pod_link(cookie)
            link = bpf.obj_get(path)
            try:
                info = bpf.link_info(link)
                if info.target and info.program_id != self._generation.program_ids[SK_LOOKUP.name]:
                    bpf.link_update(link, self._generation.programs[SK_LOOKUP.name])
            finally:
                os.close(link)
            if not info.target:
                self.leave(cookie)

    def _attach(self, program: Program, path: Path, target: int, target_id: int) -> None:
        """Have `program` attached to `target`, by a link pinned at `path`; an existing link is switched in one step.

        A link to another target stays in its place until the new one, which is pinned beside it, takes that by one rename: so
        whoever is killed leaves one that works.
        """
        beside = pin_beside(path)
        if self._switch(program, path, target_id):
            if beside.exists():
                _detach(beside)
            return
        if not self._switch(program, beside, target_id):
            if beside.exists():  # of an agent that was killed
                _take_place(beside, path)
            link = bpf.link_create(self._generation.programs[program.name], target, program.attach_type)
            try:
                bpf.obj_pin(link, beside if path.exists() else path)
            finally:
                os.close(link)
        if beside.exists():
            _take_place(beside, path)

    def _switch(self, program: Program, path: Path, target_id: int) -> bool:
        """Have the link at `path` run `program`; False: there is none, or it is another target's."""
        if not path.exists():
            return False
        link = bpf.obj_get(path)
        try:
            info = bpf.link_info(link)
            if info.target != target_id:
                return False
            if info.program_id != self._generation.program_ids[program.name]:
                bpf.link_update(link, self._generation.programs[program.name])
            return True
        finally:
            os.close(link)

    # ── pods ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def enrol(self, pod: PodSteering) -> None:
        """Steer the pod's TCP from now on.

        Its listeners should be set already, or its connections are refused until they are.  Without an address it can't connect.
        """
        self._refuse_strangers(pod)
        owners = self._maps["pods_by_address"]
        for address in pod.addresses:
            key = abi.pack_ip(address)
            known = owners.get(key)
            cookie = abi.OWNER.unpack(known)[0] if known else pod.netns_cookie
            if cookie != pod.netns_cookie:
                raise EnrolmentError(
                    f"{address} belongs to another enrolled pod (netns cookie {cookie}); addresses are unique on a node"
                )
            owners.put(key, known or abi.OWNER.pack(pod.netns_cookie, 0, 0, 0, 0))
            self._addresses.setdefault(pod.netns_cookie, set()).add(key)
        for key in self._addresses.get(pod.netns_cookie, set()) - {abi.pack_ip(address) for address in pod.addresses}:
            self._forget_address(key)
            self._addresses[pod.netns_cookie].discard(key)
        if self._waiting is None:
            self._attach_pod(pod)
        else:
            self._waiting[pod.netns_cookie] = pod

    def _attach_pod(self, pod: PodSteering) -> None:
        four = [address for address in pod.addresses if ":" not in address]
        six = [address for address in pod.addresses if ":" in address]
        self._attach(SK_LOOKUP, self._pins.pod_link(pod.netns_cookie), pod.netns_fd, os.fstat(pod.netns_fd).st_ino)
        families = (abi.FAMILY_V4 if four else 0) | (abi.FAMILY_V6 if six else 0)
        value = abi.POD.pack(
            abi.pack_ip(four[0])[12:] if four else bytes(4),
            families,
            abi.pack_ip(six[0]) if six else bytes(16),
        )
        self._maps["enrolled"].put(struct.pack("=Q", pod.netns_cookie), value)

    def leave(self, netns_cookie: int) -> None:
        """Steer the pod no longer; new connections are plain.  Nothing happens if it is not enrolled."""
        if self._waiting is not None:
            self._waiting.pop(netns_cookie, None)
        self._maps["enrolled"].delete(struct.pack("=Q", netns_cookie))
        path = self._pins.pod_link(netns_cookie)
        if path.exists():
            _detach(path)
        for key in self._addresses.pop(netns_cookie, set()):
            self._forget_address(key)
        self.probes.forget(netns_cookie)

    def enrolled_cookies(self) -> frozenset[int]:
        """The network namespaces that are steered, those that a former agent left included."""
        enrolled = {struct.unpack("=Q", key)[0] for key in self._maps["enrolled"].all_keys()}
        return frozenset(enrolled.union(self._pins.pod_cookies()))

    def _refuse_strangers(self, pod: PodSteering) -> None:
        """Another sk_lookup program in the pod could hand its connections to somebody else."""
        try:
            attached = bpf.attached_programs(pod.netns_fd, SK_LOOKUP.attach_type)
        except KernelError as error:
            raise EnrolmentError(f"the pod's network namespace cannot be used: {error}") from error
        ours = {self._generation.program_ids[SK_LOOKUP.name]}
        path = self._pins.pod_link(pod.netns_cookie)
        if self._waiting is not None and path.exists():  # of the agent before, until `attach`
            link = bpf.obj_get(path)
            try:
                ours.add(bpf.link_info(link).program_id)
            finally:
                os.close(link)
        strangers = [number for number in attached if number not in ours]
        if strangers:
            raise EnrolmentError(
                f"the pod is steered by somebody else already (sk_lookup program {strangers[0]}, `bpftool prog show id "
                f"{strangers[0]}`): another instance of nodeproxy? Let it leave there first"
            )

    def _forget_address(self, key: bytes) -> None:
        self._maps["pods_by_address"].delete(key)
        for role in Role:
            for slot in range(abi.MAX_SLOTS):
                self._maps["listeners"].delete(abi.LISTENER.pack(key, role, slot))

    # ── listeners ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def set_listener(self, address: str, role: Role, slot: int, listener_fd: int) -> None:
        """Let connections of `role` to this address of a pod reach the worker `slot`.

        A listener that closes leaves by itself.
        """
        if not 0 <= slot < abi.MAX_SLOTS:
            raise ConfigError(f"worker slot {slot} is not between 0 and {abi.MAX_SLOTS - 1}")
        self._maps["listeners"].put(abi.LISTENER.pack(abi.pack_ip(address), role, slot), struct.pack("=I", listener_fd))

    # ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def drop_counters(self) -> dict[str, int]:
        """How often the kernel's side refused, by reason, since the maps were made."""
        drops = self._maps["drops"]
        return {drop.name.lower(): drops.per_cpu_sum(drop) for drop in Drop}

    @staticmethod
    def uninstall(instance: str) -> None:
        """Detach and unpin everything of an instance that nobody runs.  Pods are plain afterwards."""
        pins = Pins(instance)
        if not pins.directory.is_dir():
            return
        lock = pins.lock()
        try:
            names = [program.name for program in reversed(CGROUP_PROGRAMS)]
            for path in [pins.links / name for name in names] + [pins.pod_link(cookie) for cookie in pins.pod_cookies()]:
                for pin in (path, pin_beside(path)):
                    if pin.exists():
                        _detach(pin)
            remove_tree(pins.directory)
        finally:
            os.close(lock)


def _detach(path: Path) -> None:
    link = bpf.obj_get(path)
    try:
        _detach_link(link)
    finally:
        os.close(link)
    path.unlink()


def _take_place(beside: Path, path: Path) -> None:
    """Have the link that is pinned beside the one at `path` be there instead."""
    before = bpf.obj_get(path)
    try:
        beside.rename(path)
        _detach_link(before)
    finally:
        os.close(before)


def _detach_link(link: int) -> None:
    try:
        bpf.link_detach(link)
    except KernelError as error:
        if error.errno != errno.ENOLINK:  # its cgroup or namespace has gone
            raise
