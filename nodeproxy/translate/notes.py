"""What translation could not take at its word: told to the operator, in the output of `compile` and in a resource's status.

Invariant: whatever of a resource is not enforced exactly as it is written has a note, and the note says what is done instead.
"""

from __future__ import annotations

import msgspec

# A note each is plenty for a person; a resource of a megabyte of nonsense must not become a megabyte of notes.
MAX_NOTES = 64
# Characters of what a resource says: the longest names of Kubernetes have 63 without dots.
MAX_QUOTED = 64
_HUGE = 1 << 64


class Note(msgspec.Struct, frozen=True, order=True):
    """One thing that was not understood, or can't be enforced.

    kind, key: the resource, `AuthorizationPolicy` and "namespace/name".
    field: its path, "spec.rules[0].to[0].operation.paths".
    message: what is wrong with it.  consequence: what is done about it.
    """

    kind: str
    key: str
    field: str
    message: str
    consequence: str

    def __str__(self) -> str:
        return f"{self.kind} {self.key}: {self.field} {self.message}: {self.consequence}"


class Notes:
    """Collects the notes of one resource, `MAX_NOTES` of them."""

    def __init__(self, kind: str, key: str) -> None:
        self.kind, self.key = kind, key
        self._notes: list[Note] = []
        self._count = 0

    def add(self, field: str, message: str, consequence: str) -> None:
        """Notes that `field` is `message`, and what is done about it."""
        self._count += 1
        if self._count <= MAX_NOTES:
            self._notes.append(Note(self.kind, self.key, field, message, consequence))

    def all(self) -> tuple[Note, ...]:
        """The notes; the last one tells how many more there were."""
        more = self._count - MAX_NOTES
        if more <= 0:
            return tuple(self._notes)
        return (*self._notes, Note(self.kind, self.key, "spec", f"has {more} more such fields", "as with these"))


def quoted(value: object) -> str:
    """What a resource says, short enough for a note."""
    if isinstance(value, str):
        return repr(value if len(value) <= MAX_QUOTED else f"{value[:MAX_QUOTED]}…")
    # A huge number has no text in Python, and needs none here.
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < _HUGE):
        return repr(value)
    return "a number" if isinstance(value, int) else f"a {type(value).__name__}"


def member(path: str, name: object) -> str:
    """The path of a field of `path`, whose name may be anything that YAML takes for one."""
    if isinstance(name, str) and name and len(name) <= MAX_QUOTED:
        return f"{path}.{name}"
    return f"{path}[{quoted(name)}]"
