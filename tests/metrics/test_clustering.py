"""Cluster error against all permutations and against the definition."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ganbench.metrics import Inputs, Model, Side, Unavailable, clustering
from ganbench.metrics.clustering import cluster_error


def numbers(n, most):
    return st.lists(st.integers(0, most), min_size=n, max_size=n)


SETS = st.integers(1, 30).flatmap(lambda n: st.tuples(numbers(n, 3), numbers(n, 4)))


def brute_force(labels, clusters):
    """Return the least error over all assignments of clusters to different classes, or to none."""
    groups = sorted(set(clusters))
    names = sorted(set(labels)) + [None] * len(groups)
    best = 0
    for given_classes in set(itertools.permutations(names, len(groups))):
        match = dict(zip(groups, given_classes, strict=True))
        best = max(best, sum(match[c] == y for c, y in zip(clusters, labels, strict=True)))
    return 1 - best / len(labels)


@given(SETS)
def test_one_to_one_matching_is_the_best_of_all_permutations(pair):
    labels, clusters = pair
    clusters = [min(c, 3) for c in clusters]
    found = cluster_error(torch.tensor(labels), torch.tensor(clusters))
    assert found == pytest.approx(brute_force(labels, clusters), abs=1e-12)


@given(SETS)
def test_majority_matching_takes_the_most_frequent_class_and_is_never_worse(pair):
    labels, clusters = pair
    right = 0
    for c in set(clusters):
        own = [y for y, k in zip(labels, clusters, strict=True) if k == c]
        right += max(own.count(y) for y in own)
    found = cluster_error(torch.tensor(labels), torch.tensor(clusters), "majority")
    assert found == pytest.approx(1 - right / len(labels), abs=1e-12)
    assert found <= cluster_error(torch.tensor(labels), torch.tensor(clusters)) + 1e-12


def test_the_numbering_of_clusters_and_classes_does_not_matter():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (200,), generator=g)
    clusters = torch.where(torch.rand(200, generator=g) < 0.8, labels, torch.randint(10, (200,), generator=g))
    error = cluster_error(labels, clusters)
    assert 0.1 < error < 0.25
    assert cluster_error(labels, (clusters * 7 + 3) % 10) == error
    assert cluster_error(100 - labels, -clusters) == error


def test_more_clusters_than_classes_help_only_the_majority_matching():
    labels = torch.arange(40) % 2
    clusters = torch.arange(40) % 4
    assert cluster_error(labels, clusters, "majority") == 0
    assert cluster_error(labels, clusters) == 0.5
    # One cluster for all images: half of them are right with both matchings.
    assert cluster_error(labels, 0 * labels) == cluster_error(labels, 0 * labels, "majority") == 0.5


def measure(stem, images, labels, classify):
    protocol = next(p for p in clustering.PROTOCOLS if p.stem == stem)
    empty = Side(images[:0])
    [value] = protocol.compute(
        Inputs(empty, empty, Side(images, labels), torch.Generator(), model=Model("test", classify=classify))
    )
    return value


def test_the_cluster_is_the_largest_logit_of_the_model():
    labels = torch.arange(60) % 3
    images = labels.view(-1, 1, 1, 1).to(torch.uint8)

    def classify(x):  # swaps the classes, and splits class 0 in two
        answer = torch.tensor([2, 0, 1])[x.flatten().long()]
        answer[torch.arange(len(x)) % 6 == 0] = 3
        return torch.nn.functional.one_hot(answer, 5).float()

    value = measure("cluster_error", images, labels, classify)
    assert value.value == pytest.approx(1 / 6)
    assert value.uncertainty.value == pytest.approx((12 / 64 * 52 / 64 / 64) ** 0.5, rel=1e-12)
    assert value.details == {"clusters": 4, "classes": 3}
    assert measure("cluster_error_majority", images, labels, classify).value == 0


def test_missing_inputs_and_unknown_matchings_raise():
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4)
    with pytest.raises(ValueError, match="'one-to-one' or 'majority', not 'best'"):
        cluster_error(labels, labels, "best")
    with pytest.raises(Unavailable, match="at least 1 image"):
        cluster_error(labels[:0], labels[:0])
    with pytest.raises(Unavailable, match="no labels"):
        measure("cluster_error", images, None, lambda x: torch.zeros(4, 2))
    with pytest.raises(Unavailable, match="no model that classifies"):
        measure("cluster_error", images, labels, None)
    with pytest.raises(Unavailable, match="not finite"):
        measure("cluster_error", images, labels, lambda x: torch.full((4, 2), torch.nan))
