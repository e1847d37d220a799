"""The record as Markdown: the matrix in the README between its markers, and docs/kernels.md with what stands behind it."""

from __future__ import annotations

from pathlib import Path

from tests.bench.report import put_between
from tests.kernels.debian import KERNELS
from tests.kernels.features import FEATURES, LEFT_OUT
from tests.kernels.record import AGAIN, Outcome, Shown

BEGIN, END = "<!-- kernels:begin (./dev test --kernels writes what is between) -->", "<!-- kernels:end -->"
_LACKS = "kernel lacks:"
_SHOWN_SLOW = 10


def write(root: Path, record: list[Shown]) -> None:
    """Both documents."""
    put_between(root / "README.md", BEGIN, END, f"{matrix(record)}\n{legend(record)}\n")
    (root / "docs" / "kernels.md").write_text(document(record), encoding="utf-8")


def cell(outcomes: list[Outcome], finished: bool) -> str:
    """How a feature did: all passed, or how many of how many failed, or what the kernel lacks."""
    failed = sum(each.outcome == "failed" for each in outcomes)
    lacking = sorted({each.why.split(_LACKS)[1].strip() for each in outcomes if _LACKS in each.why and each.outcome == "skipped"})
    passed = sum(each.outcome == "passed" for each in outcomes)
    if failed:
        return f"**✗ {failed} of {len(outcomes)}**"
    if not passed:
        return f"lacks {', '.join(lacking)}" if lacking else "not reached" if not finished else "–"
    again = sum(each.outcome == "passed" and each.why.startswith(AGAIN) for each in outcomes)
    return (
        f"✓ {passed}" + (f" ({again} on the second try)" if again else "") + (f", lacks {', '.join(lacking)}" if lacking else "")
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def matrix(record: list[Shown]) -> str:
    """Kernel × feature × result."""
    ran = [each for each in record if not each.refused]
    rows = [
        [
            "programs compile and are accepted, emulated",
            *(f"✓ {each.compile_s:.0f} s" if each.compile_s else "**✗**" for each in ran),
        ]
    ]
    for feature in FEATURES:
        cells = [cell(each.of(feature.title), len(each.tests) == each.collected) for each in ran]
        if any(each != "–" for each in cells):
            rows.append([feature.title, *cells])
    return _table(["", *(f"Linux {short(each)}" for each in ran)], rows)


def short(shown: Shown) -> str:
    """A kernel's version without the packager's part."""
    return shown.release.split("+")[0].split("-")[0] if "+" in shown.release else shown.version.split("-")[0] or shown.release


def legend(record: list[Shown]) -> str:
    """What the numbers are, and which kernels were refused."""
    refused = "".join(f" Linux {short(each)} is refused: “{_sentence(each.refused)}”." for each in record if each.refused)
    return f"Numbers are tests that passed, under emulation.{refused} [What stands behind it](docs/kernels.md)"


def _sentence(text: str) -> str:
    return (
        text.splitlines()[-1].removeprefix("nodeproxy: ").removeprefix("error: ").removeprefix("Error: ").rstrip(".")
        if text
        else ""
    )


def document(record: list[Shown]) -> str:
    """docs/kernels.md."""
    why = {kernel.name: kernel.why for kernel in KERNELS}
    lines = [
        "# Kernels",
        "",
        "Written by `sudo ./dev test --kernels`: Debian's kernels under QEMU without KVM, on the testing machine's own root.",
        "What tests wait for is given ten times as long there. BCC compiles and loads the programs once in each kernel; nodes of",
        "tests load what it made of the same sources on the testing machine (`tests/kernels/guest/replay/bcc.py`), by the same",
        "loader and past the same verifier. `-- TEST` runs one alone, and its outcome takes the place of the one before.",
        "",
        _table(
            ["kernel", "package", "why", "boot, s", "compile and load, s", "tests", "failed", "skipped", "in all, s"],
            [_about(each, why[each.name]) for each in record],
        ),
        "## Features",
        "",
        matrix(record),
        *_problems(record),
        *_skipped(record),
        "## What `nodeproxy check` says",
        "",
        _checks(record),
        "What a kernel lacks of the rows that say `no` or `off` switches itself off.",
        "",
        "## Where the time goes",
        "",
        *_slowest(record),
        "## What is not run here, and why",
        "",
        _table(["file", "why"], [[f"`{file}`", why] for file, why in LEFT_OUT.items()]),
        "Of the other files of the mesh tier those tests are run that `tests/kernels/features.py` names.",
    ]
    return "\n".join(lines) + "\n"


def _about(each: Shown, why: str) -> list[str]:
    counts = [str(len(each.tests)), str(len(each.failed)), str(sum(test.outcome == "skipped" for test in each.tests))]
    package = f"{each.version}, {each.suite}"
    if each.refused:
        return [each.release, package, why, str(each.boot_s), "refused", "", "", "", f"{each.seconds:.0f}"]
    counts[0] += f" of {each.collected}" if len(each.tests) < each.collected else ""
    compiled = f"{each.compile_s:.0f}" if each.compile_s else "no"
    return [each.release, package, why, f"{each.boot_s:.0f}", compiled, *counts, f"{each.seconds:.0f}"]


def _problems(record: list[Shown]) -> list[str]:
    lines = []
    for each in record:
        for test in each.tests:
            if test.outcome == "failed" or test.why.startswith(AGAIN):
                passed = "" if test.outcome == "failed" else "passed on the second try; at first: "
                lines.append(f"- {short(each)}: `{test.test}`: {passed}{_last_line(test.why)}")
        if each.stopped or each.unfinished:
            lines.append(
                f"- {short(each)}: {each.stopped or 'ended'} at `{each.unfinished}`, after {len(each.tests)} of {each.collected}"
            )
    return ["## Failed, or failed at first", "", *lines, ""] if lines else []


def _skipped(record: list[Shown]) -> list[str]:
    lines = [
        f"- {short(each)}: `{test.test}`: {_last_line(test.why)}"
        for each in record
        for test in each.tests
        if test.outcome == "skipped"
    ]
    return ["## Skipped", "", *lines, ""] if lines else []


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E  ")] or text.splitlines() or [""]
    return lines[0].removeprefix("E").strip().removeprefix("Skipped: ")[:200].replace("|", "\\|")


def _checks(record: list[Shown]) -> str:
    names = list(dict.fromkeys(row["name"] for each in record for row in each.checks))
    found = {each.name: {row["name"]: ("" if row["ok"] else "**✗** ") + row["found"] for row in each.checks} for each in record}
    return _table(["", *map(short, record)], [[name, *(found[each.name].get(name, "") for each in record)] for name in names])


def _slowest(record: list[Shown]) -> list[str]:
    lines = []
    for each in record:
        slow = sorted(each.tests, key=lambda test: -test.seconds)[:_SHOWN_SLOW]
        if slow:
            lines += [f"Linux {short(each)}:", "", *(f"- {test.seconds:.0f} s `{test.test}`" for test in slow), ""]
    return lines
