"""Show textures and their noise to all layers of one run."""

import pandas as pd

from rfatlas.files import disk, jobs
from rfatlas.files.task import task
from rfatlas.network import devices, model
from rfatlas.physiology import texture

with (
    jobs.job(snakemake) as log,
    devices.acquire(snakemake.params.device, snakemake.params.tf32) as device,
):
    network = model.load(snakemake.input.weights, device)
    sheet, layers = snakemake.input.sheet, list(snakemake.params.layers)
    families = pd.read_csv(snakemake.input.families)["family"].tolist()
    samples = dict(zip(families, texture.tiles(sheet, families), strict=True))
    shown = {"sheet": disk.sha256(sheet), "layers": layers}
    work = task(snakemake, "texture", (), network.weights_sha256, str(device), **shown)
    texture.measure(network, layers, samples, work)
    log.info("%d families in %d layers", len(families), len(layers))
