"""Stands for BCC inside a machine that is emulated: what BCC made of the same sources before is loaded again.

Compiling takes a minute or more under emulation, and every node of every test begins with it.  What BCC made is kept: the
instructions, and of each map what the kernel says of it.  Later loaders make the maps, or open those that are pinned, and hand
the same instructions to the verifier of the kernel that they are on.  Sources that are new are compiled by BCC, wherever that
is.  This module is told from the real one by its place in PYTHONPATH, and knows of nodeproxy what its loader knows of BCC:
BPF(text, cflags), load_func, fd.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import importlib.util
import os
import pickle
import re
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from nodeproxy.kernel import bpf

KEPT = Path(os.environ["TEST_COMPILED"])
_MAP_CREATE, _BTF_LOAD, _BTF_GET_FD_BY_ID = 0, 18, 19
_ATTRIBUTE_BYTES = 128
_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_64_BIT, _PSEUDO_MAP_FD = 0x18, 1
_LICENCE = b"Dual BSD/GPL"


class _MapShape(NamedTuple):
    """What BPF_MAP_CREATE is told.  btf: what its type ids are in; socket storage must have it."""

    create: tuple[int, int, int, int, int]  # type, key, value, entries, flags
    name: bytes
    btf: bytes
    btf_types: tuple[int, int]


class _Compiled(NamedTuple):
    """Each function's instructions, the places in them where a map's descriptor stands, and the maps by pin's name."""

    functions: dict[str, bytes]
    references: dict[str, list[tuple[int, str]]]
    maps: dict[str, _MapShape]


def _real() -> ModuleType:
    """Debian's module, which this one hides."""
    here = Path(__file__).resolve().parent
    path = [entry for entry in sys.path if Path(entry).resolve() != here]
    spec = importlib.util.find_spec("bcc") if not path else importlib.machinery.PathFinder.find_spec("bcc", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    spec.loader.exec_module(module)
    return module


def _call(command: int, attribute: bytes, what: str) -> int:
    block = ctypes.create_string_buffer(attribute, _ATTRIBUTE_BYTES)
    result = int(ctypes.CDLL(None, use_errno=True).syscall(bpf.syscall_number(), command, block, _ATTRIBUTE_BYTES))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _info(descriptor: int) -> bytes:
    data = ctypes.create_string_buffer(256)
    _call(bpf.Command.OBJ_GET_INFO, struct.pack("=IIQ", descriptor, len(data), ctypes.addressof(data)), "asking about an object")
    return data.raw


def _btf_of(number: int) -> bytes:
    if number == 0:
        return b""
    descriptor = _call(_BTF_GET_FD_BY_ID, struct.pack("=I", number), "opening BTF")
    size = struct.unpack_from("=QI", _info_btf(descriptor, b""))[1]
    space = ctypes.create_string_buffer(size)
    _info_btf(descriptor, space)
    os.close(descriptor)
    return space.raw


def _info_btf(descriptor: int, space: ctypes.Array[ctypes.c_char] | bytes) -> bytes:
    """struct bpf_btf_info: address and size of the data, id, address and size of a name, …"""
    address = ctypes.addressof(space) if space else 0
    data = ctypes.create_string_buffer(struct.pack("=QI", address, len(space)), 40)
    _call(bpf.Command.OBJ_GET_INFO, struct.pack("=IIQ", descriptor, len(data), ctypes.addressof(data)), "asking about BTF")
    return data.raw


def _shape(descriptor: int) -> tuple[int, _MapShape]:
    """A map's number and what it was made of.  struct bpf_map_info; its BTF stands at 64."""
    info = _info(descriptor)
    kind, number, key, value, entries, flags = struct.unpack_from("=6I", info)
    btf_id, key_type, value_type = struct.unpack_from("=3I", info, 64)
    return number, _MapShape(
        (kind, key, value, entries, flags), info[24:40].rstrip(b"\0"), _btf_of(btf_id), (key_type, value_type)
    )


class BPF:
    """As much of bcc.BPF as nodeproxy's loader uses."""

    def __init__(self, text: str, cflags: list[str]) -> None:
        self._pins = Path(next(flag.split('"')[1] for flag in cflags if flag.startswith("-DNP_PINS=")))
        sources = re.sub(r"\s+", " ", text) + repr([flag for flag in cflags if "NP_PINS" not in flag])
        self._kept = KEPT / hashlib.sha256(sources.encode()).hexdigest()
        self._compiled = None
        self._module = None
        if self._kept.exists():
            self._compiled = _Compiled(*pickle.loads(self._kept.read_bytes()))
            self._maps = {name: self._map(name, _MapShape(*shape)) for name, shape in self._compiled.maps.items()}
        else:
            self._module = _real().BPF(text=text, cflags=cflags)

    def _map(self, name: str, shape: _MapShape) -> int:
        pin = self._pins / name
        if pin.exists():
            return bpf.obj_get(pin)
        btf = 0
        if shape.btf:
            data = ctypes.create_string_buffer(shape.btf, len(shape.btf))
            btf = _call(_BTF_LOAD, struct.pack("=QQII", ctypes.addressof(data), 0, len(shape.btf), 0), "loading BTF")
        attribute = struct.pack("=5III16sI3I", *shape.create, 0, 0, shape.name, 0, btf, *shape.btf_types)
        descriptor = _call(_MAP_CREATE, attribute, f"making map {name}")
        bpf.obj_pin(descriptor, pin)
        return descriptor

    def load_func(self, name: str, prog_type: int, attach_type: int) -> object:
        """Loads a function as bcc.BPF.load_func does; what is returned has `fd`."""
        if self._compiled is None:
            assert self._module is not None
            function = self._module.load_func(name, prog_type, attach_type=attach_type)
            self._keep()
            return function
        code = bytearray(self._compiled.functions[name])
        for place, map_name in self._compiled.references[name]:
            struct.pack_into("=i", code, place + 4, self._maps[map_name])
        return _Loaded(self._load(name, bytes(code), prog_type, attach_type))

    def _load(self, name: str, code: bytes, prog_type: int, attach_type: int) -> int:
        log = ctypes.create_string_buffer(1 << 20)
        instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(_LICENCE)
        attribute = struct.pack(
            "=IIQQIIQII16sII",
            prog_type,
            len(code) // _INSTRUCTION.size,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            0,
            0,
            0,
            0,
            0,
            name.encode()[:15],
            0,
            attach_type,
        )
        try:
            return _call(bpf.Command.PROG_LOAD, attribute, f"loading {name}")
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {log.value[-500:].decode(errors='replace')}") from error

    def _keep(self) -> None:
        """Keep what BCC has made, once it is known that the first of its functions is accepted."""
        if self._kept.exists():
            return
        assert self._module is not None
        numbers, maps = {}, {}
        for pin in self._pins.iterdir():
            descriptor = bpf.obj_get(pin)
            number, maps[pin.name] = _shape(descriptor)
            numbers[number] = pin.name
            os.close(descriptor)
        functions, references = {}, {}
        library = sys.modules["bcc"].lib
        for index in range(library.bpf_num_functions(self._module.module)):
            name = library.bpf_function_name(self._module.module, index).decode()
            functions[name] = code = self._module.dump_func(name)
            references[name] = [(place, numbers[_shape(fd)[0]]) for place, fd in _map_references(code)]
        KEPT.mkdir(exist_ok=True)
        new = self._kept.with_suffix(f".{os.getpid()}")
        new.write_bytes(pickle.dumps((functions, references, {name: tuple(shape) for name, shape in maps.items()})))
        new.rename(self._kept)


class _Loaded(NamedTuple):
    """As bcc.BPF.Function: a program's descriptor."""

    fd: int


def _map_references(code: bytes) -> list[tuple[int, int]]:
    """Where an instruction loads a map's address: its place, and the descriptor that it names."""
    found = []
    for place in range(0, len(code), _INSTRUCTION.size):
        operation, registers, _, immediate = _INSTRUCTION.unpack_from(code, place)
        if operation == _LOAD_64_BIT and registers >> 4 == _PSEUDO_MAP_FD:
            found.append((place, immediate))
    return found
