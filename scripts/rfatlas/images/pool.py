"""Work that is shared among forked processes, which end with the one that started them."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from rfatlas.files import jobs

# What a worker process does with a task; set once in each.
_work: Callable[[Any], Any] | None = None


def in_order(work: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """Return an iterator over `work(task)` of each task, in order; `workers` processes start at
    once.

    It raises what `work` raises, and BrokenProcessPool if a process dies. Closing it ends them.
    """
    # Forked, since other ways run the calling script again in each worker; safe, since no thread
    # runs yet but that of `rfatlas.files.jobs`, which sleeps. Hence at once: a progress bar starts
    # a thread.
    context = multiprocessing.get_context("fork")
    workers = max(1, min(workers, len(tasks)))
    pool = ProcessPoolExecutor(workers, context, _start, (work, os.getpid()))
    return _results(pool, pool.map(_run, tasks))


def _results(pool: ProcessPoolExecutor, results: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    jobs.end_with_parent(parent)


def _run(task: Any) -> Any:
    return _work(task)
