"""Merge the ranges of a run into one file of activations."""

from rfatlas import activations, jobs

with jobs.job(snakemake) as log:
    activations.merge(list(snakemake.input.ranges), snakemake.output[0])
