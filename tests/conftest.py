"""Fixtures that several test files share, and what the fuzz tests tell at the end."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import pytest
from hypothesis import settings

settings.load_profile("quick")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; skips where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data are not here ({folder})")
    return folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """The folder of a finished run of tests/configs/reduced.yaml: that in RFATLAS_REFERENCE, or one
    that is made here."""
    if named := os.environ.get("RFATLAS_REFERENCE"):
        return Path(named)
    folder, root = tmp_path_factory.mktemp("reference"), Path(__file__).resolve().parents[1]
    words = ["--configfile", root / "tests" / "configs" / "reduced.yaml", "--cores", "2"]
    subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", root / "Snakefile", *words],
        cwd=folder,
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def walled(tmp_path_factory) -> Iterator[Path]:
    """A folder in a folder, so that what is written beside it is seen."""
    folder = tmp_path_factory.mktemp("outside") / "inside"
    folder.mkdir()
    yield folder
    assert [path.name for path in folder.parent.iterdir()] == ["inside"]


#: Files that run whole workflows, the longest first: begun last, one would keep a worker busy while
#: the others have nothing left.
LONGEST = ("test_real", "test_determinism", "test_workflow", "test_reruns", "test_faults")


#: What `make quick` goes without, besides workflows and what is marked as slow: tests with these
#: fixtures, and fuzz tests.
SLOW_FIXTURES = {"browser", "shared_data"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark slow tests, and put the longest files first."""
    for item in items:
        if item.path.stem.startswith("test_fuzz_") or SLOW_FIXTURES & {*item.fixturenames}:
            item.add_marker("slow")
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_terminal_summary(terminalreporter):
    if fuzzing.TALLY:
        terminalreporter.section("fuzzed inputs")
        for line in fuzzing.summary():
            terminalreporter.write_line(line)
