"""Replace the channels of one layer of a run, one by one, over one range of images."""

from rfatlas.ablation import ablate, ablation
from rfatlas.network.layer_job import layer_job

with layer_job(snakemake, "ablation", "images", "activations") as job:
    labels, output = job.files["images"]["labels"][:], job.files["activations"]["output"]
    # The partners of `shuffle` are those of the estimates.
    images = None if job.settings["estimate"] else job.settings["images"]
    estimates = snakemake.input.get("estimates")
    ablation.sweep(
        ablate.Ablator(job.network, job.layer, job.activations["mean"][:], job.task.memory_mb),
        job.images,
        labels,
        ablate.sequence(labels, images, job.settings["seed"]),
        int(snakemake.wildcards.start),
        int(snakemake.wildcards.stop),
        dict(output),
        job.settings,
        job.task,
        ablation.read_estimates(estimates, job.layer) if estimates else {},
    )
