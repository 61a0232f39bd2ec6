"""Cluster error: the error of a model's own categories as a classifier, after clusters are matched with classes.

    error = 1 - max over matchings m of  mean over images of [ m(cluster of x) = label of x ]

Two matchings are defined:

- `one-to-one`: each class has at most one cluster. The Hungarian method finds the best matching. Source: Chen et al.
  (2016), "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets",
  arXiv:1606.03657, Section 7.2, with 5 % error on MNIST by the categorical code.
- `majority`: each cluster gets its most frequent class, so that there may be more clusters than classes. Source:
  Springenberg (2016), "Unsupervised and Semi-supervised Learning with Categorical Generative Adversarial Networks",
  arXiv:1511.06390.

Range [0, 1], lower is better. The one-to-one error is never below the majority error.

The cluster of a held-out image is the argmax of the model's logits. It is not confirmed on which images the papers
matched clusters and classes. Here they are the test images, which the model has not seen; with many clusters and few
images the result is optimistic.

The standard error is binomial over the images, for a fixed matching.
"""

from typing import Literal

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_labels, require_tensor
from ganbench.metrics.discriminability import proportion
from ganbench.metrics.semi_supervised import own_answers

Matching = Literal["one-to-one", "majority"]


def wrong(labels: Tensor, clusters: Tensor, matching: Matching) -> Tensor:
    """Return True for each of N images whose cluster is matched with another class than its own: bool N.

    labels, clusters: int64 N, any values. In the one-to-one matching, surplus clusters have no class.
    Raises ValueError for an unknown matching.
    """
    from scipy.optimize import linear_sum_assignment

    class_values, y = labels.unique(return_inverse=True)
    cluster_values, c = clusters.unique(return_inverse=True)
    table = torch.zeros(len(cluster_values), len(class_values), dtype=torch.int64)
    table.index_put_((c, y), torch.ones_like(y), accumulate=True)
    if matching == "majority":
        class_of_cluster = table.argmax(1)
    elif matching == "one-to-one":
        class_of_cluster = torch.full((len(cluster_values),), -1)
        rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
        class_of_cluster[torch.from_numpy(rows)] = torch.from_numpy(columns)
    else:
        raise ValueError(f"matching is 'one-to-one' or 'majority', not {matching!r}")
    return class_of_cluster[c] != y


def cluster_error(labels: Tensor, clusters: Tensor, matching: Matching = "one-to-one") -> float:
    """Return the share of N images that are wrong under the best matching of clusters and classes, in [0, 1].

    labels, clusters: int64 N, any values; the numbers of clusters and classes may differ.
    Raises Unavailable if there are no images, and ValueError for an unknown matching.
    Source: Chen et al. (2016), Section 7.2 (one-to-one); Springenberg (2016) (majority).

    >>> cluster_error(torch.tensor([0, 0, 1, 1]), torch.tensor([7, 7, 7, 9]))
    0.25
    """
    require_tensor(labels, "labels", "N", "whole")
    require_tensor(clusters, "clusters", "N", "whole", len(labels))
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
        rows="stream",
    )


PROTOCOLS = [
    _protocol("cluster_error", "one-to-one", "Chen et al. 2016, arXiv:1606.03657, Sec. 7.2"),
    _protocol("cluster_error_majority", "majority", "Springenberg 2016, arXiv:1511.06390"),
]
