"""What a script hands to the library together with its data: where the results go, what they are
made from, and how much memory the work may take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfatlas.files import jobs, store


@dataclass(frozen=True)
class Task:
    """The work of one job.

    `output` is the HDF5 file to write, its table beside it with the ending .csv; `attrs` its
    provenance (`store.provenance`). Batches are chosen to fit a process of `memory_mb` megabytes,
    libraries included. `bar` makes progress bars, as `jobs.progress`.
    """

    output: Path
    attrs: Mapping[str, Any]
    memory_mb: float = 3000
    bar: Callable[..., Any] = jobs.progress

    @property
    def table(self) -> Path:
        """The table beside the output."""
        return self.output.with_suffix(".csv")

    def fingerprint(self, **more: Any) -> dict[str, Any]:
        """What progress of this work must have in common with it to be taken up again."""
        return {key: str(value) for key, value in self.attrs.items()} | more


def task(
    snakemake: Any,
    stage: str,
    made_from: tuple[str, ...],
    weights_sha256: str = "",
    device: str = "cpu",
    **config: Any,
) -> Task:
    """Return the task of a job with one HDF5 output.

    `made_from` names inputs whose identity goes into the provenance (those that a run goes without
    are left out); `config` is added to the rule's `settings`.
    """
    inputs = {name: snakemake.input.get(name) for name in made_from}
    created_from = {name: store.identity(path) for name, path in inputs.items() if path}
    settings = dict(snakemake.params.get("settings", {})) | config
    attrs = store.provenance(stage, settings, weights_sha256, created_from, device)
    return Task(Path(snakemake.output[0]), attrs, jobs.memory_mb(snakemake))
