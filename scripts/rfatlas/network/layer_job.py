"""What the jobs of one layer of a network start with: log, device, open files, network and task."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import torch

from rfatlas.files import jobs, store
from rfatlas.files.task import Task, task
from rfatlas.network import devices, model


@dataclass(frozen=True)
class LayerJob:
    """A job; `files` are its HDF5 inputs by name, None for one that the run goes without."""

    log: logging.Logger
    layer: str
    settings: Mapping[str, Any]
    device: torch.device
    network: model.LoadedModel
    files: Mapping[str, h5py.File | None]
    task: Task

    @property
    def images(self) -> Any:
        """The photographs, uint8 (N, H, W, 3)."""
        return store.array(self.files["images"]["images"])

    @property
    def activations(self) -> h5py.Group:
        """What the stage activations found of the layer."""
        return self.files["activations"][self.layer]


@contextlib.contextmanager
def layer_job(snakemake: Any, stage: str, *inputs: str, **config: Any) -> Iterator[LayerJob]:
    """Run the body of the script of a stage whose rule has a layer and a network.

    `inputs` name the rule's HDF5 inputs, `config` is added to its `settings` (see `task`).
    """
    layer, params = snakemake.wildcards.layer, snakemake.params
    with (
        jobs.job(snakemake) as log,
        devices.acquire(params.device, params.tf32) as device,
        contextlib.ExitStack() as stack,
    ):
        network = model.load(snakemake.input.weights, device)
        work = task(snakemake, stage, inputs, network.weights_sha256, str(device), **config)
        paths = {name: snakemake.input.get(name) for name in inputs}
        files = {
            name: stack.enter_context(store.open(path)) if path else None
            for name, path in paths.items()
        }
        yield LayerJob(log, layer, dict(params.settings), device, network, files, work)
