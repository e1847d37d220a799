"""`./dev bench`: builds two nodes of network namespaces, measures nodeproxy beside others, and writes down what it found."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from tests.bench import report
from tests.bench.agent_rows import AGENT, AgentRow
from tests.bench.compare import told
from tests.bench.contestant import Contestant
from tests.bench.control_plane import report as control_plane_report
from tests.bench.control_plane import run as control_plane
from tests.bench.plot import PANELS, draw
from tests.bench.record import Record, about_this_machine
from tests.bench.rows import MEMORY, TRAFFIC, Row
from tests.bench.run import AGENT_OF, Clock, Plan, measure, measure_agent, start
from tests.bench.world import Options, World

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "docs" / "bench"
PARTIAL = Path(tempfile.gettempdir()) / "nodeproxy-bench"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    names = ", ".join(row.name for row in (*TRAFFIC, *MEMORY, *AGENT))
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rows and rounds: under 4 minutes")
    add("--only", action="append", metavar="ROW", help=f"rows whose name begins so; again for more.  Rows: {names}")
    add("--rounds", type=int, help="how often each row is measured (5; quick 2)")
    add("--seconds", type=int, help="how long a measurement of traffic takes (3; quick 1)")
    add("--contestants", metavar="NAMES", help="only these, with commas between; ratios need the direct ones")
    add("--out", type=Path, metavar="DIR", help=f"where to write (docs/bench; a partial run {PARTIAL})")
    add("--tree", type=Path, default=ROOT, metavar="DIR", help="whose nodeproxy is measured (`./dev bench`: this one, compiled)")
    add("--against", type=Path, metavar="DIR", help="a second one that takes part: a checkout, or its build/compiled")
    add("--plugin", action="append", type=Path, default=[], metavar="FILE", help="a further contestant: see contestant.py")
    add("--workers", type=int, default=2, help="of nodeproxy, a node (2)")
    add(
        "--control-plane",
        action="store_true",
        help="control planes on a large cluster instead: ten minutes, and Go once",
    )
    control_plane.add_arguments(parser)
    return parser.parse_args(argv)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_contestant_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def find_contestants(world: World, plugins: list[Path], wanted: str | None) -> list[Contestant]:
    own = sorted((Path(__file__).parent / "contestants").glob("*.py"))
    found = [each for path in (*own, *plugins) for each in _module(path).contestants(world)]
    if wanted is None:
        return found
    names = wanted.split(",")
    if unknown := set(names) - {each.name for each in found}:
        raise SystemExit(f"no contestant {', '.join(sorted(unknown))}; there are {', '.join(each.name for each in found)}")
    return [each for each in found if each.name in names]


AnyRow = TypeVar("AnyRow", Row, AgentRow)


def choose(rows: Sequence[AnyRow], only: list[str] | None, quick: bool) -> list[AnyRow]:
    """The rows that were asked for."""
    if only:
        return [row for row in rows if row.name.startswith(tuple(only))]
    return [row for row in rows if row.quick or not quick]


def run(asked: argparse.Namespace, clock: Clock) -> Record:
    """Build the nodes, measure, remove the nodes."""
    plan = Plan(asked.rounds or (2 if asked.quick else 5), asked.seconds or (1 if asked.quick else 3))
    traffic, memory, agent = (choose(rows, asked.only, asked.quick) for rows in (TRAFFIC, MEMORY, AGENT))
    if not (traffic or memory or agent):
        raise SystemExit(f"no row begins with {' or '.join(asked.only)}; --help lists them")
    about = {**about_this_machine(asked.tree), "rounds": plan.rounds, "seconds": plan.seconds, "quick": asked.quick}
    options = Options(asked.tree.resolve(), asked.against and asked.against.resolve(), asked.workers)
    with World(options) as world:
        contestants = find_contestants(world, asked.plugin, asked.contestants)
        agent = agent if AGENT_OF in {each.name for each in contestants} else []
        record = Record.new(about, contestants, [*traffic, *memory, *agent])
        try:
            measure_agent(world, agent, plan, record, clock)
            if traffic or memory:
                start(world, contestants, clock)
                measure(contestants, traffic, plan, record, clock)
                measure(contestants, memory, plan, record, clock)
        except KeyboardInterrupt:
            clock.say("interrupted: the nodes are removed, and what was measured is written")
            record.failures.append("the run was interrupted")
    return record


@dataclass(frozen=True)
class Form:
    """How a kind of record is written down: the files' name, the document, the README's part, the picture's panels."""

    stem: str
    document: Callable[[Record], str]
    write_readme: Callable[[Path, Record], bool]
    panels: Sequence[tuple[str, str]]


TRAFFIC_FORM = Form("bench", report.document, report.write_readme, PANELS)
CONTROL_PLANE_FORM = Form(
    "control-plane", control_plane_report.document, control_plane_report.write_readme, control_plane_report.PANELS
)


def write(record: Record, form: Form, out: Path, clock: Clock) -> None:
    """The record, its table and its picture; what changed since the record that is kept; and, beside that one, the README."""
    kept = Record.read(KEPT / f"{form.stem}.json")
    out.mkdir(parents=True, exist_ok=True)
    record.write(out / f"{form.stem}.json")
    text = form.document(record)
    (out / f"{form.stem}.md").write_text(text, encoding="utf-8")
    draw(record, out, form.stem, form.panels)
    if out.resolve() == KEPT:
        form.write_readme(ROOT / "README.md", record)
    print(text)
    if kept is not None:
        print(told(kept, record))
    clock.say(f"written: {out}")


def main() -> int:
    """The exit status: 1 if a measurement failed."""
    asked = arguments()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    partial = asked.quick or asked.only or asked.contestants or asked.against or asked.plugin
    if asked.control_plane:
        partial = partial or asked.nodes or asked.pods or asked.services
    clock = Clock()
    record = (control_plane.run if asked.control_plane else run)(asked, clock)
    if "the run was interrupted" in record.failures and asked.out is None:
        partial = True  # it must not replace the record that is kept
    form = CONTROL_PLANE_FORM if asked.control_plane else TRAFFIC_FORM
    write(record, form, asked.out or (PARTIAL if partial else KEPT), clock)
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())
