"""Fixtures that several test files share, and what the fuzz tests tell at the end."""

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


def pytest_collection_modifyitems(items):
    """Put the longest files first."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_terminal_summary(terminalreporter):
    if fuzzing.TALLY:
        terminalreporter.section("fuzzed inputs")
        for line in fuzzing.summary():
            terminalreporter.write_line(line)
