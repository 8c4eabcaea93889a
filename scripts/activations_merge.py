"""Merge the ranges of a run into one file of activations."""

from rfatlas.fields import activations
from rfatlas.files import jobs

with jobs.job(snakemake) as log:
    activations.merge(list(snakemake.input.ranges), snakemake.output[0])
