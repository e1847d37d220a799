"""A skip cannot look like a pass: tests/conftest.py is tried on small suites of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text(encoding="utf-8")
MARKERS = "\n ".join(("unit: 1", "fuzz: 2", "kernel: 3", "mesh: 4", "peers: 5"))
PASSES = "def test_it(): pass\n"


def skips(reason: str) -> str:
    return f"import pytest\ndef test_it():\n    pytest.skip({reason!r})\n"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs a suite of the files given, as root or not."""

    def runner(files: dict[str, str], *options: str, uid: int = 0) -> pytest.RunResult:
        monkeypatch.setattr("os.geteuid", lambda: uid)
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # hypothesis alone takes a second to load
        pytester.makeini(f"[pytest]\nmarkers =\n {MARKERS}\n")
        pytester.makepyfile(**{"tests/conftest": CONFTEST, **{f"tests/{name}": text for name, text in files.items()}})
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "--import-mode=importlib", *options)

    return runner


def test_a_skip_is_a_pass_unless_told_otherwise(run) -> None:
    files = {"unit/test_a": skips("no redis here")}
    assert run(files).ret == 0


def test_no_skips_fails_and_names_the_test(run) -> None:
    result = run({"unit/test_a": skips("no redis here"), "unit/test_b": PASSES}, "--no-skips")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*skipped, which --no-skips forbids*", "tests/unit/test_a.py::test_it: no redis here"])
    assert "passed" in result.outlines[-1]


def test_no_skips_sees_a_whole_file_skipped(run) -> None:
    result = run({"unit/test_a": "import pytest\npytest.importorskip('no_such_module')\n", "unit/test_b": PASSES}, "--no-skips")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["tests/unit/test_a.py: could not import 'no_such_module'*"])


def test_no_skips_accepts_what_the_kernel_lacks_and_expected_failures(run) -> None:
    xfail = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_it(): assert 0\n"
    assert run({"unit/test_a": skips("kernel lacks: kTLS"), "unit/test_b": xfail}, "--no-skips").ret == 0


def test_without_root_the_upper_tiers_are_not_run_and_it_says_so(run) -> None:
    files = {f"{tier}/test_a": "def test_it(): raise RuntimeError\n" for tier in ("kernel", "mesh", "peers")}
    result = run({**files, "unit/test_a": PASSES}, uid=1000)
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(["NOT RUN, for want of root: kernel mesh peers.  For all: sudo ./dev test"])


def test_tiers_are_marked_and_run_in_order(run) -> None:
    files = {f"{tier}/test_a": PASSES for tier in ("peers", "mesh", "kernel", "fuzz", "unit")}
    result = run(files, "-v")
    result.stdout.fnmatch_lines(
        [f"tests/{tier}/test_a.py::test_it PASSED*" for tier in ("unit", "fuzz", "kernel", "mesh", "peers")]
    )
    run(files, "-m", "kernel").assert_outcomes(passed=1, deselected=4)


def test_what_each_tier_took_is_shown(run) -> None:
    result = run({"unit/test_a": PASSES, "unit/test_b": PASSES, "fuzz/test_c": PASSES})
    result.stdout.fnmatch_lines(["*tiers*", "unit * 2 tests in * s", "fuzz * 1 tests in * s"])
