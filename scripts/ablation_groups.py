"""Predict without groups of channels, in one layer of a run."""

from rfatlas.ablation import ablate, ablation_groups
from rfatlas.files import store
from rfatlas.network.layer_job import layer_job

images, seed = snakemake.params.images, snakemake.params.seed
with layer_job(
    snakemake, "ablation_groups", "images", "activations", images=images, seed=seed
) as job:
    labels = job.files["images"]["labels"][:]
    order = ablate.sequence(labels, images, seed)
    mean = job.activations["mean"][:]
    ablator = ablate.Ablator(job.network, job.layer, mean, job.task.memory_mb)
    table = store.read_table(snakemake.input.channels)
    rows = table[table["layer"] == job.layer].sort_values("channel")
    plan = ablation_groups.plan(
        rows, job.layer, job.settings, ablator.replacement.has_filters(), seed
    )
    ablation_groups.measure(
        ablator,
        plan,
        job.images,
        labels,
        order,
        job.task,
        ablation_groups.PREDICTIONS[job.device.type],
    )
    job.log.info("%s: %d sets of channels, %d images", job.layer, len(plan.sets), len(order))
