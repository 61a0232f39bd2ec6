"""Metrics: pure functions of tensors, and named protocols that fix how each one is measured.

Each file holds one formula with its source, and its `PROTOCOLS` at the end. The formulas are plain functions that a
training loop can call. They raise TypeError or ValueError, which names the argument, for tensors of another type or
shape, or with values that are not finite.

>>> import torch
>>> from ganbench.metrics import frechet_distance
>>> round(frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])), 6)
1.0
"""

from ganbench.metrics.began_convergence import convergence_measure
from ganbench.metrics.clustering import cluster_error
from ganbench.metrics.code_information import information_bound
from ganbench.metrics.contract import (
    Inputs,
    Model,
    Protocol,
    Side,
    Space,
    Unavailable,
    Uncertainty,
    Value,
    features_of,
    known,
    require_features,
    require_labels,
    require_logits,
)
from ganbench.metrics.discriminability import accuracy
from ganbench.metrics.frechet import (
    Moments,
    MomentsAccumulator,
    check_moments,
    frechet_distance,
    frechet_distance_from_moments,
    frechet_standard_error,
    moments,
)
from ganbench.metrics.inception_score import inception_score
from ganbench.metrics.kernel import kernel_distance, mmd2_unbiased, mmd_rbf
from ganbench.metrics.manifold import coverage, density, precision, recall
from ganbench.metrics.memorisation import authenticity, nearest_training_images
from ganbench.metrics.mind import monge_distance
from ganbench.metrics.mode_coverage import kl_divergence, kl_to_uniform, mixture_modes, modes_found
from ganbench.metrics.ms_ssim import ms_ssim
from ganbench.metrics.mutual_predictability import y_from_z, z_from_y
from ganbench.metrics.nearest_neighbour import nearest
from ganbench.metrics.nn_transfer import nn_transfer
from ganbench.metrics.parzen import choose_sigma, parzen_log_likelihood
from ganbench.metrics.path_length import path_lengths, perceptual_path_length
from ganbench.metrics.probes import few_labels_probe, probe
from ganbench.metrics.realism import realism
from ganbench.metrics.reconstruction import mean_absolute_errors, mean_squared_errors
from ganbench.metrics.semi_supervised import test_error
from ganbench.metrics.separability import linear_separability
from ganbench.metrics.sliced_wasserstein import sliced_wasserstein

__all__ = [
    "Inputs",
    "Model",
    "Moments",
    "MomentsAccumulator",
    "Protocol",
    "Side",
    "Space",
    "Unavailable",
    "Uncertainty",
    "Value",
    "accuracy",
    "authenticity",
    "check_moments",
    "choose_sigma",
    "cluster_error",
    "convergence_measure",
    "coverage",
    "density",
    "features_of",
    "few_labels_probe",
    "frechet_distance",
    "frechet_distance_from_moments",
    "frechet_standard_error",
    "inception_score",
    "information_bound",
    "kernel_distance",
    "kl_divergence",
    "kl_to_uniform",
    "known",
    "linear_separability",
    "mean_absolute_errors",
    "mean_squared_errors",
    "mixture_modes",
    "mmd2_unbiased",
    "mmd_rbf",
    "modes_found",
    "moments",
    "monge_distance",
    "ms_ssim",
    "nearest",
    "nearest_training_images",
    "nn_transfer",
    "parzen_log_likelihood",
    "path_lengths",
    "perceptual_path_length",
    "precision",
    "probe",
    "realism",
    "recall",
    "require_features",
    "require_labels",
    "require_logits",
    "sliced_wasserstein",
    "test_error",
    "y_from_z",
    "z_from_y",
]
