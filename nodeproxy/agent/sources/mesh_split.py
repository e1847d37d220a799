"""Where the entries of a large mesh file begin and end, found without parsing it, so that only entries that changed are parsed.

Only plain layouts are split: JSON, and YAML in block style with its lists at the top; what is in doubt is None, and the file is
then read whole.
Invariant: a piece is an entry and stands for itself, *if* whoever parses the pieces finds as many entries as there are pieces.
In block style no line of a piece but its first has a token as far left as the list's hyphens, so a piece holds one entry at most;
a quotation or bracket that goes on into the next piece makes two pieces one entry, which the count shows.  What one piece could
change in another's meaning is refused here (directives, other line breaks than \\n) or by who parses (anchors).
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from typing import NamedTuple

from nodeproxy.agent.sources.mesh_entries import RESOURCES

_LINE_BREAKS = (b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")  # YAML 1.1, section 4.2: as \r, these are line breaks
_COMMENTS = rb"(?:[ ]*(?:#[^\n]*)?\n)*"
_PREAMBLE = re.compile(_COMMENTS + rb"(?:---\n)?" + _COMMENTS)
# Patterns of lines begin with the line break before: searching for a fixed byte is ten times faster than for the start of a line.
_HEAD = re.compile(rb"\n(?=[^\s#-])")
_LIST = re.compile(rb"(\w+):([ ]+\[\])?(?:[ ]+#[^\n]*)?[ ]*(?:\n|\Z)")
_FIRST = re.compile(_COMMENTS + rb"([ ]*)-[ \n]")
_JSON_SPACE = re.compile(r"[ \n]*")  # and no tabs, which YAML does not take everywhere

Range = tuple[int, int]


class Section(NamedTuple):
    """A key of the root map and its value: the text from `begin` to `end`.

    name: its key if it is a list of resources, else "".  first: where the list's first piece begins.
    """

    name: str
    begin: int
    first: int
    end: int
    pieces: list[Range]


class Pieces(NamedTuple):
    """A mesh file in pieces.  begin: where its first section does."""

    content: bytes
    is_json: bool
    begin: int
    sections: list[Section]

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """The name of its list and the text of each piece."""
        for section in self.sections:
            for begin, end in section.pieces:
                yield section.name, self.content[begin:end]

    def only(self, wanted: Container[int]) -> bytes:
        """A mesh file with some of the pieces, by their number among all, and with all that is outside of pieces."""
        number = 0
        parts = []
        for section in self.sections:
            chosen = [self.content[slice(*piece)] for at, piece in enumerate(section.pieces, number) if at in wanted]
            number += len(section.pieces)
            parts.append(self._section(section, chosen))
        preamble = self.content[: self.begin]
        return b"%b{%b}" % (preamble, b",".join(parts)) if self.is_json else preamble + b"".join(parts)

    def _section(self, section: Section, chosen: list[bytes]) -> bytes:
        if not section.pieces:
            return self.content[section.begin : section.end]
        head = self.content[section.begin : section.first]
        if self.is_json:
            return head + b",".join(chosen) + b"]"
        if chosen:
            return head + b"".join(chosen)
        name, colon, comments = head.partition(b":")
        return name + colon + b" []" + comments


def split(content: bytes) -> Pieces | None:
    """The pieces of a mesh file, None if it is not laid out plainly."""
    if b"\r" in content or not content.isascii() and any(line_break in content for line_break in _LINE_BREAKS):
        return None
    begin = _PREAMBLE.match(content).end()  # type: ignore[union-attr]  # it matches everything
    is_json = content[begin : begin + 1] == b"{"
    sections = _split_json(content, begin) if is_json else _split_block(content, begin)
    names = [section.name for section in sections or () if section.name]
    if sections is None or len(set(names)) != len(names):
        return None
    return Pieces(content, is_json, begin, sections)


def _split_block(content: bytes, at: int) -> list[Section] | None:
    heads = [at, *(match.end() for match in _HEAD.finditer(content, at))]
    sections = []
    for begin, end in zip(heads, [*heads[1:], len(content)], strict=True):
        named = _LIST.match(content, begin, end)
        if named is None:
            return None
        name = named[1].decode()
        if name not in RESOURCES:
            sections.append(Section("", begin, end, end, []))
            continue
        pieces = _block_pieces(content, named.end(), end)
        # `name: []` has nothing below it; any other value is for the parser to judge.
        if bool(pieces) == (named[2] is not None) or pieces is None:
            return None
        sections.append(Section(name, begin, pieces[0][0] if pieces else end, end, pieces))
    return sections


def _block_pieces(content: bytes, begin: int, end: int) -> list[Range] | None:
    """The pieces of a list in block style; begin: after its name's line.  None: there is something else."""
    first = _FIRST.match(content, begin, end)
    if first is None:
        return [] if re.compile(_COMMENTS).fullmatch(content, begin, end) else None
    indent = b"[ ]{%d}" % len(first[1])
    other = re.compile(rb"\n(?!" + indent + rb"(?:[ ]|-[ \n])|[ ]*(?:#|\n|\Z))")
    if other.search(content, begin - 1, end) is not None:
        return None
    hyphen = re.compile(rb"\n(?=" + indent + rb"-[ \n])")
    starts = [match.end() for match in hyphen.finditer(content, begin - 1, end)]
    return list(zip(starts, [*starts[1:], end], strict=True))


def _split_json(content: bytes, begin: int) -> list[Section] | None:
    try:
        return list(_json_sections(content.decode("ascii"), begin))  # so that places in the text are places in the bytes
    except (ValueError, IndexError, RecursionError):  # it is no JSON, or not of ASCII alone
        return None


def _json_sections(text: str, at: int) -> Iterator[Section]:
    """Raises ValueError or IndexError if it is not JSON."""
    read = json.JSONDecoder().raw_decode
    at = _past(text, at, "{")
    while True:
        begin = at
        name, at = read(text, at)
        at = _past(text, _past(text, at), ":")
        pieces: list[Range] = []
        if name in RESOURCES and text[at] == "[":
            first = at = _past(text, at, "[")
            while text[at] != "]":
                if pieces:
                    at = _past(text, at, ",")
                _, end = read(text, at)
                pieces.append((at, end))
                at = _past(text, end)
            at += 1
            yield Section(name, begin, first, at, pieces)
        else:
            _, at = read(text, at)
            yield Section("", begin, at, at, [])
        at = _past(text, at)
        if text[at] == "}":
            break
        at = _past(text, at, ",")
    if _past(text, at + 1) != len(text):
        raise ValueError("there is more after the end")


def _past(text: str, at: int, mark: str = "") -> int:
    """The place after `mark`, which must stand at `at`, and after the space behind it."""
    if not text.startswith(mark, at):
        raise ValueError(f"no {mark} at {at}")
    return _JSON_SPACE.match(text, at + len(mark)).end()  # type: ignore[union-attr]  # it matches everything
