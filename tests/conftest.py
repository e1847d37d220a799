"""What holds for every test: its tier, the order of tiers, what needs root, and that a skip cannot look like a pass.

A test's tier is the folder it is in.  All but `unit` and `fuzz` need root; without it they are skipped, and the run says so.
With --no-skips a skipped test fails the run, unless its reason begins with "kernel lacks:": such a test shows nothing on this
kernel and no change of ours can make it.
"""

from __future__ import annotations

import os
import signal

import pytest

# Read by gRPC when it is imported.  With its handlers for fork(2), what a test starts by `preexec_fn` aborts now and then before
# exec; and what it has to say of servers that tests end is noise.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.environ["GRPC_VERBOSITY"] = "NONE"

TIERS = ("unit", "fuzz", "kernel", "mesh", "peers", "cluster")  # the order in which they run: the cheapest news first
ROOT_TIERS = frozenset({"kernel", "mesh", "peers", "cluster"})
NEEDS_ROOT = "needs root: sudo ./dev test"
KERNEL_LACKS = "kernel lacks:"


def tier_of(item: pytest.Item) -> str | None:
    """The tier that a test belongs to, None outside of all (e.g. tests/bench)."""
    tests = item.config.rootpath / "tests"
    folder = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
    return folder if folder in TIERS else None


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test or a whole file was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


class SkipLedger:
    """Keeps every skip of the session and, if asked, fails the session for them."""

    def __init__(self, forbidden: bool) -> None:
        self.forbidden = forbidden
        self.skipped: dict[str, str] = {}

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped[report.nodeid] = skip_reason(report)

    def unexcused(self) -> dict[str, str]:
        """The skips that a run with --no-skips does not accept: node id and reason."""
        return {node: reason for node, reason in self.skipped.items() if not reason.startswith(KERNEL_LACKS)}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.forbidden and self.unexcused() and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        without_root = {node.split("/")[1] for node, reason in self.skipped.items() if reason == NEEDS_ROOT}
        if without_root:
            tiers = " ".join(tier for tier in TIERS if tier in without_root)
            terminalreporter.write_line(f"NOT RUN, for want of root: {tiers}.  For all: sudo ./dev test", yellow=True, bold=True)
        if self.forbidden and (unexcused := self.unexcused()):
            terminalreporter.section("skipped, which --no-skips forbids", red=True)
            for node, reason in unexcused.items():
                terminalreporter.write_line(f"{node}: {reason}")


class Measurements:
    """Shows, after the run, what tests measured and told by `record_property`: "what" → text."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, object]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.rows += report.user_properties

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.rows:
            terminalreporter.section("measured")
            width = max(len(what) for what, _ in self.rows)
            for what, value in self.rows:
                terminalreporter.write_line(f"{what:{width}}  {value}")


class TierTimes:
    """Shows, after the run, what each tier took: the whole check has a bar, and here is what to cut."""

    def __init__(self) -> None:
        self.tests: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tier = report.nodeid.split("/")[1] if report.nodeid.startswith("tests/") else "other"
        self.tests.setdefault(tier, set()).add(report.nodeid)
        self.seconds[tier] = self.seconds.get(tier, 0.0) + report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if len(self.tests) > 1:
            terminalreporter.section("tiers")
            for tier, tests in self.tests.items():
                terminalreporter.write_line(f"{tier:8}{len(tests):6} tests in {self.seconds[tier]:6.1f} s")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help=f'a skip fails the run, unless its reason begins with "{KERNEL_LACKS}"'
    )
    parser.addoption(
        "--churn",
        type=int,
        metavar="PODS",
        help="how many come and go in tests/cluster/test_many_pods.py; for 1,000 also: -o timeout=900",
    )
    parser.addoption(
        "--form",
        choices=("compiled", "pure"),
        help="what the run must be a run of: a test fails if nodeproxy is in the other form",
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job begins so, and the programs that tests start, and end by Ctrl-C's signal, would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Measurements(), "measurements")
    config.pluginmanager.register(TierTimes(), "tier-times")
    config.pluginmanager.register(SkipLedger(config.getoption("--no-skips")), "skip-ledger")


@pytest.hookimpl(tryfirst=True)  # before pytest's own -m chooses by the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    is_root = os.geteuid() == 0
    for item in items:
        tier = tier_of(item)
        if tier is None:
            continue
        item.add_marker(tier)
        if tier in ROOT_TIERS and not is_root:
            item.add_marker(pytest.mark.skip(reason=NEEDS_ROOT))
    order = {tier: place for place, tier in enumerate(TIERS)}
    items.sort(key=lambda item: order.get(tier_of(item) or "", len(TIERS)))  # stable: within a tier nothing moves
