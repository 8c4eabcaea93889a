"""Replace the channels of one layer of a run, one by one, over one range of images."""

from rfatlas.ablation import ablate, ablation
from rfatlas.network.layer_job import layer_job

with layer_job(snakemake, "ablation", "images", "activations") as job:
    labels, output = job.files["images"]["labels"][:], job.files["activations"]["output"]
    ablation.sweep(
        ablate.Ablator(job.network, job.layer, job.activations["mean"][:], job.task.memory_mb),
        job.images,
        labels,
        ablate.sequence(labels, job.settings["images"], job.settings["seed"]),
        int(snakemake.wildcards.start),
        int(snakemake.wildcards.stop),
        dict(output),
        job.settings,
        job.task,
    )
