"""`./dev test --kernels`: boots Debian's kernels under QEMU, runs the kernel tier and much of the mesh tier in each, writes
the matrix.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from nodeproxy.kernel.pins import remove_tree
from nodeproxy.linux.bpffs import BPFFS, ensure_bpffs
from tests.kernels import report
from tests.kernels.debian import CACHE, KERNELS, Failure, Kernel, Unpacked, fetch
from tests.kernels.features import selection
from tests.kernels.machine import booted
from tests.kernels.record import Shown, once_more, read, read_lines, write

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs" / "kernels.json"
# Emulated, two processors of this machine do the work of a tenth of one.
PACE = 10
TIMEOUT_S = 900  # of a test; some compile programs, by BCC
REPLAY = Path("tests", "kernels", "guest", "replay")
_POLL_S = 0.5
_SAID_EVERY_S = 30.0


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what is pytest's (after `--`)."""
    own, _, pytests = (argv, "", []) if "--" not in argv else (argv[: argv.index("--")], "", argv[argv.index("--") + 1 :])
    parser = argparse.ArgumentParser(
        prog="./dev test --kernels",
        description=__doc__,
        epilog="-- ARGS: these tests alone, as pytest's; the record keeps the others as they were",
    )
    names = ", ".join(kernel.name for kernel in KERNELS)
    parser.add_argument(
        "kernels", nargs="*", metavar="VERSION", help=f"which ({names}; all), or the path of an image of your own"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long one kernel may take (60)")
    parser.add_argument("--tree", type=Path, help="the compiled form that is tested")
    parser.add_argument("--virtme", type=Path, required=True, help="the folder of vng")
    return parser.parse_args(own), pytests


def alone() -> IO[str]:
    """One run at a time: they share a folder, and this machine's processors."""
    (CACHE / "run").mkdir(parents=True, exist_ok=True)
    lock = (CACHE / "run" / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Failure(f"another run is on; it holds {lock.name}") from error
    return lock


def chosen(names: list[str]) -> list[Unpacked]:
    """The kernels that were asked for, unpacked."""
    known = {kernel.name: kernel for kernel in KERNELS}
    found = []
    for name in names or list(known):
        if name in known:
            say(f"{name}: {known[name].package} of {known[name].suite}")
            found.append(fetch(known[name]))
        elif Path(name).is_file():
            image = Path(name).resolve()
            found.append(Unpacked(Kernel(image.name, "", "", "an image of your own"), image.name, "", image))
        else:
            raise Failure(f"no kernel {name}: there are {', '.join(known)}, or give the path of an image")
    return found


_began = time.monotonic()


def say(text: str) -> None:
    """A line of progress, as ./dev's own."""
    print(f"[{time.monotonic() - _began:3.0f} s] {text}", file=sys.stderr, flush=True)


def copy_tree(target: Path) -> None:
    """The checkout as it is now, so that an edit meanwhile is not half tested: what git knows, and what it does not ignore."""
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    for name in listed.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file() and not source.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def compile_programs(sources: Path, tree: Path, kept: Path) -> None:
    """What BCC makes of the eBPF programs, by this machine's own clang: seconds, where an emulated one takes minutes."""
    shutil.rmtree(kept, ignore_errors=True)
    ensure_bpffs()
    pins = BPFFS / f"nodeproxy-kernels-{os.getpid()}"
    pins.mkdir()
    path = f"{tree / REPLAY}:{sources}"
    try:
        subprocess.run(
            [sys.executable, "-m", "nodeproxy.kernel.loader", pins],
            env=os.environ | {"PYTHONPATH": path, "TEST_COMPILED": str(kept)},
            check=True,
        )
    finally:
        remove_tree(pins)


def script(folder: Path, tree: Path, sources: Path, pytests: list[str], whole: bool) -> str:
    """What runs in the machine.  Each part leaves a file, so that what has been shown is known whatever comes after.

    whole: with BCC itself in this kernel, once.
    """
    path = [tree / REPLAY, sources]
    first = f"pythonpath={sources} {tree}"
    # Hypothesis is not used by these tiers, and takes half a minute to import.
    plugins = ["-p", "tests.kernels.guest.results", "-p", "no:hypothesispytest"]
    pytest = ["-m", "pytest", "-o", first, "-o", f"timeout={TIMEOUT_S}", *plugins, "-q"]
    quoted = {name: shlex.quote(str(value)) for name, value in {"python": sys.executable, "folder": folder, "tree": tree}.items()}
    return f"""
cd {quoted["tree"]}
python={quoted["python"]} folder={quoted["folder"]}
export HOME=/root PYTHONPATH={shlex.quote(":".join(map(str, path)))} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
export TEST_PACE={PACE} TEST_RESULTS=$folder/results.jsonl TEST_COMPILED=/run/compiled
cp -r {shlex.quote(str(tree.with_name("programs")))} $TEST_COMPILED
uname -r >$folder/release
$python -m nodeproxy check -o json >$folder/check.json
# The first row is the kernel's; what is true is an exit status of 1.
if $python -c 'import json, sys; sys.exit(json.load(open(sys.argv[1]))["requirements"][0]["ok"])' $folder/check.json; then
    timeout 300 $python -m nodeproxy run --node n --mesh /dev/null --ca /dev/null >$folder/refused 2>&1
    exit
fi
mount -t bpf bpf /sys/fs/bpf
mkdir /sys/fs/bpf/first
TIMEFORMAT=%R
first() {{ $python -m nodeproxy.kernel.loader /sys/fs/bpf/first 2>$folder/loader.log && touch $folder/loads; }}
{{ time {"TEST_COMPILED=/run/none " if whole else ""}first; }} 2>$folder/compile_s
rm -r /sys/fs/bpf/first
PYTHONPATH=$PYTHONPATH:{quoted["tree"]}
$python {shlex.join([*pytest, *pytests])} >$folder/pytest.log 2>&1
export TEST_AGAIN=1
$python -c {shlex.quote(_FAILED)} $TEST_RESULTS | xargs -r -d '\\n' $python {shlex.join(pytest)} >$folder/again.log 2>&1
"""


# Names of the tests that failed, for xargs; of many there is no use in another try.
_FAILED = """
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
failed = dict.fromkeys(line["test"] for line in lines if line.get("outcome") == "failed")
print("\\n".join(failed) if len(failed) <= 20 else "", end="")
"""


def run(kernel: Unpacked, options: argparse.Namespace, pytests: list[str], tree: Path, sources: Path) -> Shown:
    """Boot it, run the script, follow what it shows, and tell of it."""
    folder = CACHE / "run" / kernel.kernel.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "run.sh").write_text(script(folder, tree, sources, pytests or selection(), whole=not pytests))
    name, stopped = kernel.kernel.name, ""
    say(f"{name}: booting {kernel.release}; what it prints: {folder}")
    start, boot_s, said = time.monotonic(), 0.0, 0.0
    told: set[str] = set()
    with booted(options.virtme, kernel, folder) as process:
        while process.poll() is None:
            time.sleep(_POLL_S)
            elapsed = time.monotonic() - start
            if not boot_s and (folder / "release").exists():
                boot_s = elapsed
            if elapsed > options.minutes * 60:
                stopped = f"stopped after {options.minutes:g} minutes"
                break
            collected, tests, now = read_lines(folder / "results.jsonl")
            for test in tests:
                if test.outcome == "failed" and test.test not in told:
                    told.add(test.test)
                    say(f"{name}: FAILED {test.test}")
            if elapsed - said > _SAID_EVERY_S:
                said = elapsed
                say(f"{name}: {len(tests)} of {collected} tests, {len(told)} failed; {now or phase(folder)}")
    return gathered(kernel, folder, time.monotonic() - start, boot_s, stopped)


def phase(folder: Path) -> str:
    """What the machine is at before its first test."""
    for file, words in (("pytest.log", "pytest begins"), ("compile_s", "the programs load"), ("release", "`nodeproxy check`")):
        if (folder / file).exists():
            return words
    return "booting"


def gathered(kernel: Unpacked, folder: Path, seconds: float, boot_s: float, stopped: str) -> Shown:
    """What the machine's folder says."""
    collected, tests, unfinished = read_lines(folder / "results.jsonl")
    checks = folder / "check.json"
    text = checks.read_text() if checks.exists() else ""
    compiled = float((folder / "compile_s").read_text().split()[-1]) if (folder / "loads").exists() else None
    refused = folder / "refused"
    return Shown(
        name=kernel.kernel.name,
        release=kernel.release,
        version=kernel.version,
        suite=kernel.kernel.suite,
        seconds=round(seconds),
        boot_s=round(boot_s),
        compile_s=compiled,
        checks=json.loads(text)["requirements"] if text else [],
        refused=refused.read_text().strip() if refused.exists() else "",
        collected=collected,
        tests=tests,
        unfinished=unfinished,
        stopped=stopped,
    )


def verdict(shown: Shown) -> str:
    """Empty if all is well, else what is not."""
    folder = CACHE / "run" / shown.name
    if shown.refused:
        return "" if "nodeproxy needs Linux" in shown.refused else f"it ended for another reason than its age: {folder}/refused"
    if shown.compile_s is None:
        return f"the programs do not load, or the machine did not boot: {folder}/loader.log, console.log, guest.log"
    if shown.stopped or shown.unfinished or len(shown.tests) < shown.collected or not shown.collected:
        return f"{shown.stopped or 'it ended early'} at {shown.unfinished or '?'}: {folder}/pytest.log, console.log"
    return f"{len(shown.failed)} failed: {folder}/pytest.log" if shown.failed else ""


def summary(shown: Shown) -> str:
    """A line for the end of a run."""
    if shown.refused:
        return f"{shown.name}: refused: {shown.refused}  {verdict(shown) or 'as it must be'}"
    counts = {outcome: sum(test.outcome == outcome for test in shown.tests) for outcome in ("passed", "failed", "skipped")}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return f"{shown.name}: {told} of {shown.collected} in {shown.seconds:.0f} s.  {verdict(shown) or 'all well'}"


def keep(shown: Shown, whole: bool) -> None:
    """The record, with what earlier runs have shown, and what is made of it; whole: all tests ran, not some that were named."""
    known = {each.name: each for each in read(RECORD)}
    before = known.get(shown.name)
    if whole:
        known[shown.name] = shown
    elif before is not None and before.release == shown.release:
        known[shown.name] = once_more(before, shown)
    record = [known[kernel.name] for kernel in KERNELS if kernel.name in known]
    write(RECORD, record)
    report.write(ROOT, record)
    say(f"written: README.md, docs/kernels.md, {RECORD.relative_to(ROOT)}")


def main(argv: list[str]) -> int:
    """The whole run; its exit status."""
    options, pytests = arguments(argv)
    if os.geteuid() != 0:
        raise SystemExit("./dev test --kernels needs root")
    try:
        lock = alone()
        kernels = chosen(options.kernels)
        tree = sources = CACHE / "run" / "tree"
        copy_tree(tree)
        if options.tree is not None:
            sources = tree.with_name("compiled")
            shutil.rmtree(sources, ignore_errors=True)
            shutil.copytree(options.tree, sources)
        # Else each process there would compile each module anew.
        subprocess.run([sys.executable, "-m", "compileall", "-q", tree, sources], check=True)
        compile_programs(sources, tree, tree.with_name("programs"))
        shown = []
        for kernel in kernels:
            shown.append(run(kernel, options, pytests, tree, sources))
            keep(shown[-1], whole=not pytests)  # whoever is interrupted has what was shown
    except Failure as failure:
        raise SystemExit(f"./dev test --kernels: {failure}") from failure
    lock.close()
    for each in shown:
        say(summary(each))
    return 1 if any(verdict(each) for each in shown) else 0


if __name__ == "__main__":
    # However it is ended, the machine ends with it; a shell's background job begins with SIGINT ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
