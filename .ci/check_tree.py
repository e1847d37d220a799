"""Checks of the tree that no other tool makes: files stay short, and links in the documents lead somewhere.

Prints one line for each problem and exits 1 if there was one.  It looks at files only; it imports nothing of the project.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULE_LINES = 500  # CONTRIBUTING.md, "Style"
MAX_BPF_LINES = 300  # the same: one attach point a file
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|<img[^>]+src=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """Every Markdown file that is part of the project."""
    return sorted(p for p in ROOT.rglob("*.md") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))


def too_long() -> Iterator[str]:
    """Modules and BPF programs over their limit."""
    for folder, pattern, limit in (
        ("nodeproxy", "*.py", MAX_MODULE_LINES),
        ("tests", "*.py", MAX_MODULE_LINES),
        ("bpf", "*.[ch]", MAX_BPF_LINES),
    ):
        for path in sorted((ROOT / folder).rglob(pattern)):
            lines = len(path.read_bytes().splitlines())
            if lines > limit and not GENERATED.search(path.name):
                yield f"{path.relative_to(ROOT)}: {lines} lines, {limit} is the limit"


def anchors(document: Path) -> set[str]:
    """The fragment names that a Markdown renderer gives to the headings of a document."""
    text = CODE_BLOCK.sub("", document.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in HEADING.findall(text))
    return {re.sub(r"\s", "-", heading.strip()) for heading in plain}


def broken_links() -> Iterator[str]:
    """Relative links whose file or heading is not there."""
    for document in documents():
        text = CODE_BLOCK.sub("", document.read_text(encoding="utf-8"))
        for match in LINK.finditer(text):
            target = match.group(1) or match.group(2)
            if re.match(r"[a-z]+:", target):
                continue  # another site: not ours to keep
            file, _, fragment = target.partition("#")
            path = (document.parent / file).resolve() if file else document
            where = f"{document.relative_to(ROOT)}: link to {target}"
            if not path.exists():
                yield f"{where}: there is no such file"
            elif fragment and path.suffix == ".md" and fragment not in anchors(path):
                yield f"{where}: there is no such heading"


def main() -> int:
    """Run all checks; the exit status."""
    problems = [*too_long(), *broken_links()]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
