"""Cluster error: how wrong a model's own categories are as a classifier, once each has been given a class.

    error = 1 - max over matchings m of  mean over images of [ m(cluster of x) = label of x ]

With `one-to-one` matching no two clusters stand for one class (the best such matching, by the Hungarian method): Chen
et al. (2016), "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets",
arXiv:1606.03657, Section 7.2: 5 % on MNIST by the categorical code. With `majority` matching each cluster stands for
its commonest class, so that more clusters than classes can be used: Springenberg (2016), "Unsupervised and
Semi-supervised Learning with Categorical Generative Adversarial Networks", arXiv:1511.06390. Range [0, 1], lower is
better; one-to-one matching never gives less than the majority.

The cluster is the largest of the model's answers to a held-out image. Which images the papers matched on is not
confirmed: here those that are tested on, which no cluster has seen; with many clusters for few images that flatters.

The standard error is binomial over the images; the matching is taken as given.
"""

from typing import Literal

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_labels
from ganbench.metrics.discriminability import proportion
from ganbench.metrics.semi_supervised import own_answers

Matching = Literal["one-to-one", "majority"]


def wrong(labels: Tensor, clusters: Tensor, matching: Matching) -> Tensor:
    """Which of N images are in a cluster that was given another class than theirs: bool N.

    labels, clusters: int64 N, any values. One-to-one, clusters beyond the number of classes are given none.
    """
    from scipy.optimize import linear_sum_assignment

    names, y = labels.unique(return_inverse=True)
    groups, c = clusters.unique(return_inverse=True)
    table = torch.zeros(len(groups), len(names), dtype=torch.int64)
    table.index_put_((c, y), torch.ones_like(y), accumulate=True)
    if matching == "majority":
        given = table.argmax(1)
    elif matching == "one-to-one":
        given = torch.full((len(groups),), -1)
        rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
        given[torch.from_numpy(rows)] = torch.from_numpy(columns)
    else:
        raise ValueError(f"matching is 'one-to-one' or 'majority', not {matching!r}")
    return given[c] != y


def cluster_error(labels: Tensor, clusters: Tensor, matching: Matching = "one-to-one") -> float:
    """Share of N images that are wrong under the best matching of clusters and classes. Unavailable for none at all.

    labels, clusters: int64 N, any values; there may be more of one than of the other.
    """
    return proportion(wrong(labels, clusters, matching))[0]


def _protocol(stem: str, matching: Matching, source: str) -> Protocol:
    def compute(inputs: Inputs) -> list[Value]:
        if inputs.held_out is None:
            raise Unavailable("there are no real images beside the reference to test on")
        labels = require_labels(inputs.held_out)
        clusters = own_answers(inputs).argmax(1)
        value, error = proportion(wrong(labels, clusters, matching))
        uncertainty = Uncertainty(error, "standard error", "the test images (binomial)")
        details = {"clusters": len(clusters.unique()), "classes": len(labels.unique())}
        return [Value(value, uncertainty, len(labels), 0, details=details)]

    return Protocol(
        stem=stem,
        version=1,
        summary=f"Error of the model's categories on held-out images, {matching} matching",
        source=source,
        direction="lower",
        compute=compute,
        needs=frozenset({"model.classify", "held_out.images", "held_out.labels"}),
        real_row="none",
    )


PROTOCOLS = [
    _protocol("cluster_error", "one-to-one", "Chen et al. 2016, arXiv:1606.03657, Sec. 7.2"),
    _protocol("cluster_error_majority", "majority", "Springenberg 2016, arXiv:1511.06390"),
]
