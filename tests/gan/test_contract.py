"""The contract of reference models: the example in its docstring works, and a step moves only the named networks."""

import doctest

import pytest
import torch
from torch import nn

from ganbench.gan import GAN, capabilities, contract, minimize, minimize_together


def test_the_examples_in_the_docstrings_work():
    found = doctest.testmod(contract)
    assert found.failed == 0
    assert found.attempted > 10


def test_a_model_without_its_methods_says_so():
    model = GAN()
    assert capabilities(model) == []
    for call in (model.optimizers, lambda: model.training_step(None, {}), lambda: model.sample(1)):
        with pytest.raises(NotImplementedError):
            call()


def test_minimize_leaves_no_gradient_in_other_networks():
    d, g = nn.Linear(2, 1), nn.Linear(2, 2)
    before = [p.clone() for p in d.parameters()]
    minimize(d(g(torch.ones(3, 2))).mean(), torch.optim.SGD(g.parameters(), 0.1))
    assert all(p.grad is None for p in d.parameters())
    assert all(torch.equal(p, q) for p, q in zip(d.parameters(), before, strict=True))


def test_networks_that_are_minimised_together_see_the_weights_from_before_the_step():
    x, y = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    losses = minimize_together((x * y, [torch.optim.SGD([x], 1.0)]), (-x * y, [torch.optim.SGD([y], 1.0)]))
    assert [loss.item() for loss in losses] == [6, -6]
    assert not any(loss.requires_grad for loss in losses)
    assert (x.item(), y.item()) == (-1, 5)
