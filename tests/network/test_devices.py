"""Choosing a device, and one job per GPU."""

import multiprocessing
import os
import time
from types import SimpleNamespace

import pytest
import torch

from rfatlas.errors import RfatlasError
from rfatlas.network import devices


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"test-{index}")
    )


@pytest.fixture(autouse=True)
def own_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    gpus(monkeypatch, 0)
    for asked in ("auto", "cpu"):
        with devices.acquire(asked) as device:
            assert device == torch.device("cpu")
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("asked", "count"), [("cuda", 0), ("cuda:2", 2)])
def test_devices_that_are_not_there_are_refused(monkeypatch, asked, count):
    gpus(monkeypatch, count)
    with pytest.raises(RfatlasError, match=f"device: '{asked}'"), devices.acquire(asked):
        pass


def test_jobs_spread_over_free_gpus(monkeypatch):
    gpus(monkeypatch, 2)
    with devices.acquire("auto") as first, devices.acquire("cuda") as second:
        assert {first.index, second.index} == {0, 1}
    with devices.acquire("auto") as again:
        assert again.index == 0, "a lock is given back"


def _hold(paths, ready):
    devices._wait_for_lock(paths, 0.01)
    ready.touch()
    time.sleep(60)


def _appears(path, seconds):
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return path.exists()


def test_a_third_job_waits_and_a_killed_one_frees_its_gpu(tmp_path):
    paths = [tmp_path / "0.lock", tmp_path / "1.lock"]
    context = multiprocessing.get_context("fork")
    holder = context.Process(target=_hold, args=(paths, tmp_path / "first"))
    holder.start()
    assert _appears(tmp_path / "first", 30)
    position, descriptor = devices._wait_for_lock(paths, 0.01)
    assert position == 1, "the first is held by another process"
    waiter = context.Process(target=_hold, args=(paths, tmp_path / "second"))
    waiter.start()
    try:
        assert not _appears(tmp_path / "second", 0.5), "both are taken"
        holder.kill()
        assert _appears(tmp_path / "second", 30), "a killed job's lock is free"
    finally:
        waiter.kill()
        os.close(descriptor)
