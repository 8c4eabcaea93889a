"""What every script of the workflow shares: log file, clear errors, thread count, progress bars,
an end when the run is killed."""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import psutil
from tqdm import tqdm

from rfatlas.errors import RfatlasError
from rfatlas.files import disk

_log_stream: TextIO | None = None


@contextlib.contextmanager
def job(snakemake: Any) -> Iterator[logging.Logger]:
    """Run the body of a script of the workflow.

    Logs to the rule's log file and to a terminal that is its own. A RfatlasError or a full disk
    ends the job with one line and exit status 1; any other exception leaves its traceback in the
    log. When Snakemake is killed the job ends, too, within two seconds.
    """
    global _log_stream
    log_path = Path(snakemake.log[0])
    log_path.parent.mkdir(parents=True, exist_ok=True)
    _log_stream = log_path.open("w", buffering=1)
    handlers: list[logging.Handler] = [logging.StreamHandler(_log_stream)]
    if _terminal():
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=handlers,
        force=True,
    )
    logging.captureWarnings(True)
    if "torch" in sys.modules:
        limit_threads(snakemake.threads)
    log = logging.getLogger("rfatlas")
    _end_with(_snakemakes())
    try:
        yield log
    except Exception as error:
        if not isinstance(error, RfatlasError):
            if not disk.is_full(error):
                log.exception("unexpected error")
                raise
            file = getattr(error, "filename", None) or next(iter(snakemake.output), "the output")
            error = disk.no_room(file)
        log.error("%s", error)
        # Without a terminal, whoever started Snakemake would see nothing of it.
        if not sys.stderr.isatty():
            print(f"rfatlas: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        logging.shutdown()


def _terminal() -> bool:
    """Whether there is a terminal, on which no logger of Snakemake draws (see common.smk)."""
    return sys.stderr.isatty() and "RFATLAS_DRAWN" not in os.environ


def _snakemakes() -> list[psutil.Process]:
    """The processes above this one that are Snakemake's; on a cluster that of this job alone."""
    found = []
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            python, *words = [Path(word).name for word in process.cmdline()] or [""]
            if python.startswith("python") and "snakemake" in words[:6]:
                found.append(process)
    return found


def _end_with(processes: list[psutil.Process]) -> None:
    """End this process, as by SIGKILL, once one of `processes` has ended.

    Snakemake's jobs outlive it when it is killed. What they still did would be lost: the next run
    removes outputs that were being written, and progress that went into them is no more.
    """

    def alive(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    if processes:
        _end_unless(
            lambda: all(map(alive, processes)), "Snakemake was killed; so this job ends, too"
        )


def end_with_parent(parent: int) -> None:
    """End this worker process when `parent`, the process that started it, has ended.

    When a process is killed nobody tells its workers; they would wait for tasks for ever.
    """

    _end_unless(lambda: os.getppid() == parent)


def _end_unless(alive: Callable[[], bool], said: str = "") -> None:
    def watch() -> None:
        while alive():
            time.sleep(1.0)
        if said:
            logging.getLogger("rfatlas").error(said)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def memory_mb(snakemake: Any) -> float:
    """Megabytes that a job may plan its batches for: what was granted to its first attempt.

    A retry asks for more, because the plan may have been the mistake: the rest is room to spare.
    """
    return snakemake.resources.mem_mb / snakemake.resources.attempt


def limit_threads(threads: int) -> None:
    """Give torch `threads` threads, importing it if that has not happened yet."""
    import torch

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def progress(iterable: Iterable | None = None, unit: str = "image", **options: Any) -> tqdm:
    """Return a progress bar of tqdm with rate and remaining time: on a terminal of the job's own
    there, else a line in the log now and then."""
    terminal = _terminal()
    return tqdm(
        iterable,
        unit=unit,
        file=sys.stderr if terminal or _log_stream is None else _log_stream,
        mininterval=0.5 if terminal else 10.0,
        dynamic_ncols=terminal,
        ascii=not terminal,
        **options,
    )
