"""DCGAN: the sizes of both architectures, its losses by number, and the MNIST network's batch norm."""

import numpy as np
import pytest
import torch
from torch import nn

from ganbench.gan import checkpoint


def sizes(net):
    """The shapes of a network's parameters, gains and shifts of batch norm apart."""
    return sorted(tuple(p.shape) for p in net.parameters() if p.ndim > 1)


def test_the_mnist_networks_have_the_weights_of_the_code_and_nothing_else():
    """gw, gw2, gw3, gwx; dw, dw2, dw3, dwy: no biases, no gains, no shifts."""
    model = checkpoint.make_model("dcgan", {"image_size": 28, "channels": 1, "num_classes": 10}, "test")
    assert sizes(model.G) == sorted([(1024, 110), (6272, 1034), (138, 64, 5, 5), (74, 1, 5, 5)])
    assert sizes(model.D) == sorted([(64, 11, 5, 5), (128, 74, 5, 5), (1024, 6282), (1, 1034)])
    for net in (model.G, model.D):
        assert all(p.ndim > 1 for p in net.parameters())
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert len(norms) == {model.G: 3, model.D: 2}[net]
        assert {m.eps for m in norms} == {1e-8}


def test_figure_1_has_four_transposed_convolutions_from_1024_maps():
    model = checkpoint.make_model("dcgan", {}, "test")
    assert sizes(model.G) == sorted(
        [(16384, 100), (1024, 512, 5, 5), (512, 256, 5, 5), (256, 128, 5, 5), (128, 3, 5, 5)]
    )
    assert sizes(model.D) == sorted(
        [(128, 3, 5, 5), (256, 128, 5, 5), (512, 256, 5, 5), (1024, 512, 5, 5), (1, 16384)]
    )


def test_the_losses_are_the_cross_entropies_of_the_paper():
    model = checkpoint.make_model("dcgan", {"image_size": 8, "g_width": 4, "d_width": 4}, "test")
    real, fake = torch.randn(50), torch.randn(50)
    p, q = (1 / (1 + np.exp(-t.double().numpy())) for t in (real, fake))
    assert float(model.d_loss(real, fake)) == pytest.approx(-np.log(p).mean() - np.log(1 - q).mean(), rel=1e-5)
    assert float(model.g_loss(fake)) == pytest.approx(-np.log(q).mean(), rel=1e-5)
