"""Helpers that every other folder may use. They import no other folder of ganbench.

data_spec.py        specs that name data: `mnist:train[:50000]`, `folder:PATH`
device.py           choose a device, describe it, measure its memory
distributed.py      several processes under torchrun: ranks, failures, gradients, batch norm, gathered rows
errors.py           UserError, and suggestions for misspelt names
files.py            atomic writing, JSON, SHA-256
label_noise.py      wrong labels that a recipe puts on its training images: kinds, pairs of classes, transition matrix
memory.py           memory that is free, and a refusal of what needs more
precision.py        full float32 precision for measurements
progress.py         progress bars and messages on stderr
registry.py         models, data sets, extractors, metrics and recipes, found by entry point
schema.py           fields of results and recipes, held against their schema
standard_output.py  stdout is kept for the answer while code of the user runs
"""
