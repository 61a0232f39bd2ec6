"""Metrics: pure functions of tensors, and named protocols that fix everything about how one is measured.

Each file holds one formula with its source, and at its foot `PROTOCOLS`. The formulas are plain functions that a
training loop can call: `from ganbench.metrics import frechet_distance`.
"""

from ganbench.metrics.contract import (
    Inputs,
    Model,
    Protocol,
    Side,
    Unavailable,
    Uncertainty,
    Value,
    features_of,
    require_features,
    require_labels,
    require_logits,
)

__all__ = [
    "Inputs",
    "Model",
    "Protocol",
    "Side",
    "Unavailable",
    "Uncertainty",
    "Value",
    "features_of",
    "require_features",
    "require_labels",
    "require_logits",
]
