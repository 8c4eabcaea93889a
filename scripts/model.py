"""Build a run's network, load and check its weights, describe its layers."""

import json
from pathlib import Path

import torch

from rfatlas.files import jobs, store
from rfatlas.network import devices, model, weight_files

with jobs.job(snakemake) as log:
    config = snakemake.params.model
    network = model.make(config)
    input = model.resolve_input(config, network)
    if weight_files.random_seed(config["weights"]) is not None:
        with (
            devices.acquire(snakemake.params.device) as device,
            store.open(snakemake.input.images, "images") as file,
        ):
            images = file["images"]
            count = min(len(images), snakemake.params.batch_norm_images)
            network.to(device)
            model.reestimate_batch_norm(
                network,
                (
                    model.preprocess(
                        images[start : start + 64], input["mean"], input["std"], device
                    )
                    for start in range(0, count, 64)
                ),
            )
            network.to("cpu")
            log.info("batch-norm statistics re-estimated on %d images", count)
    traced = model.trace(network, input)
    model.save(network, traced, Path(snakemake.output.weights), config, input)
    description = model.describe(network, traced, input)
    loaded = model.load(snakemake.output.weights)
    for layer in description["layers"]:
        layer |= model.norms(traced, layer["name"])
    description |= {
        "run": snakemake.wildcards.run,
        "factory": config["factory"],
        "weights": config["weights"],
        "weights_sha256": loaded.weights_sha256,
    }
    Path(snakemake.output.description).write_text(json.dumps(description, indent=1) + "\n")
    log.info(
        "%s: %d parameters, %d layers, torch %s",
        config["factory"],
        description["parameters"],
        len(description["layers"]),
        torch.__version__,
    )
