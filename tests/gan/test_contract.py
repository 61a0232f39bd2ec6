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


def test_terms_of_a_loss_are_computed_one_after_the_other_and_make_one_step_of_their_sum():
    x, target = torch.randn(6, 3), torch.randn(6, 2)
    whole, parts = nn.Linear(3, 2), nn.Linear(3, 2)
    parts.load_state_dict(whole.state_dict())
    seen = []

    def terms():
        for a, b in zip(x.split(4), target.split(4), strict=True):
            seen.append(None if parts.weight.grad is None else parts.weight.grad.clone())
            yield (parts(a) - b).square().sum() / 12

    one = minimize((whole(x) - target).square().mean(), torch.optim.SGD(whole.parameters(), 0.1))
    two = minimize(terms(), torch.optim.SGD(parts.parameters(), 0.1))
    torch.testing.assert_close((one, whole.weight, whole.bias), (two, parts.weight, parts.bias))
    assert seen[0] is None
    assert seen[1].any(), "the first term's gradient is there before the second term is computed"


def test_the_terms_of_a_loss_are_computed_under_the_autocast_of_the_caller():
    net, seen = nn.Linear(3, 2), []

    def terms():
        for _ in range(2):
            h = net(torch.ones(4, 3))
            seen.append(h.dtype)
            yield h.float().mean()

    with torch.autocast("cpu", torch.bfloat16):
        loss = minimize(terms(), torch.optim.SGD(net.parameters(), 0.1))
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert loss.dtype == torch.float32
