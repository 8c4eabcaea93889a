"""Tasks for tests: the work of one layer, without a progress bar."""

import contextlib
from pathlib import Path

from rfatlas.files import store
from rfatlas.files.task import Task


class Bar(contextlib.AbstractContextManager):
    """A progress bar that shows nothing."""

    def __init__(self, **words):
        pass

    def __exit__(self, *error):
        pass

    def update(self, count: int) -> None:
        pass

    def close(self) -> None:
        pass


def task(stage: str, output: Path, memory_mb: float = 3000.0, **config) -> Task:
    return Task(output, store.provenance(stage, config), memory_mb, Bar)
