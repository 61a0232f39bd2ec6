"""InfoGAN's bound L_I against the mutual information of channels that are known, and its standard error."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ganbench.evaluation.subject import under_test
from ganbench.gan import GAN, Code
from ganbench.metrics import Inputs, Model, Side, Unavailable, code_information
from ganbench.metrics.code_information import information_bound

NOTHING = Side(torch.zeros(0, 1, 1, 1, dtype=torch.uint8))
[PROTOCOL] = code_information.PROTOCOLS
CPU = torch.device("cpu")


def measure(model, seed=0):
    return PROTOCOL.compute(Inputs(NOTHING, NOTHING, None, torch.Generator().manual_seed(seed), model=model))


class Channel(GAN):
    """Codes through a noisy channel, with the exact posterior as Q: the bound is then the mutual information.

    c1: one of four values; the image shows it with probability 0.7, and each of the others with 0.1. c2: uniform in
    (-1, 1); the image shows c2 + N(0, std^2), so that the posterior is a truncated normal density.
    """

    image_shape = (1, 1, 2)
    num_classes = 0

    def __init__(self, std=0.2, classes=0):
        super().__init__()
        self.num_classes, self.std = classes, std
        self.p = torch.nn.Parameter(torch.zeros(1))

    def codes(self):
        return Code("c1", 1, 4), Code("c2", 5)

    def sample_latent(self, n, generator=None):
        """Noise of the first channel, the codes, and noise of the second."""
        c1 = torch.eye(4)[torch.randint(4, (n,), generator=generator)]
        c2 = torch.rand(n, 1, generator=generator) * 2 - 1
        return torch.cat([torch.rand(n, 1, generator=generator), c1, c2, torch.randn(n, 1, generator=generator)], 1)

    def generate(self, z, y=None):
        assert (y is not None) == bool(self.num_classes)
        shown = (z[:, 1:5].argmax(1) + ((z[:, 0] - 0.7) / 0.1).ceil().clamp(min=0)) % 4
        return torch.stack([shown / 2 - 1, (z[:, 5] + self.std * z[:, 6]) / 4], 1).view(-1, 1, 1, 2)

    def code_log_likelihood(self, x, z):
        shown, seen = ((x.flatten(1)[:, 0] + 1) * 2).round().long(), 4 * x.flatten(1)[:, 1].double().numpy()
        right = z[:, 1:5].argmax(1) == shown
        low, high = (-1 - seen) / self.std, (1 - seen) / self.std
        normal = stats.truncnorm.logpdf(z[:, 5].double().numpy(), low, high, loc=seen, scale=self.std)
        return torch.stack([torch.where(right, math.log(0.7), math.log(0.1)), torch.from_numpy(normal).float()], 1)


@pytest.mark.parametrize("classes", [0, 3])
def test_with_the_exact_posterior_it_is_the_mutual_information(classes):
    both, c1, c2 = measure(under_test(Channel(classes=classes), "channel", {}, CPU))
    assert [v.suffix for v in (both, c1, c2)] == ["", "@c1", "@c2"]
    discrete = math.log(4) - stats.entropy([0.7, 0.1, 0.1, 0.1])
    assert abs(c1.value - discrete) < 3 * c1.uncertainty.value
    # H(seen) - H(seen | c2), by quadrature
    grid = np.linspace(-3, 3, 20001)
    density = (stats.norm.cdf((grid + 1) / 0.2) - stats.norm.cdf((grid - 1) / 0.2)) / 2
    entropy = np.trapezoid(-density * np.log(np.maximum(density, 1e-300)), grid)
    continuous = entropy - stats.norm(scale=0.2).entropy()
    assert abs(c2.value - continuous) < 3 * c2.uncertainty.value
    assert 0 < c1.uncertainty.value < 0.02
    assert 0 < c2.uncertainty.value < 0.02
    assert both.value == pytest.approx(c1.value + c2.value, rel=1e-9)
    assert both.details == {"entropy": pytest.approx(math.log(4) + math.log(2))}
    assert (both.n_real, both.n_fake) == (0, 5000)


def test_any_other_q_gives_less():
    class Sharp(Channel):
        def code_log_likelihood(self, x, z):
            exact = super().code_log_likelihood(x, z)
            p = torch.tensor([0.9, 0.1 / 3]).log()
            return torch.stack([torch.where(exact[:, 0] > -1, *p), exact[:, 1]], 1)

    exact, sharp = (measure(under_test(model(), "channel", {}, CPU)) for model in (Channel, Sharp))
    loss = 0.7 * math.log(0.7 / 0.9) + 0.3 * math.log(0.1 * 3 / 0.1)  # KL of the posteriors
    assert exact[1].value - sharp[1].value == pytest.approx(loss, abs=0.03)
    assert sharp[0].value < exact[0].value


def test_the_value_is_the_mean_with_its_standard_error():
    log_q = torch.randn(50, generator=torch.Generator().manual_seed(0))
    value, error = information_bound(log_q, 2.5)
    assert value == pytest.approx(np.mean(log_q.double().numpy()) + 2.5, rel=1e-12)
    assert error == pytest.approx(stats.sem(log_q.double().numpy()), rel=1e-12)


def test_the_interval_covers_the_expectation():
    covered = 0
    for seed in range(100):
        log_q = torch.rand(200, generator=torch.Generator().manual_seed(seed)).log()  # of mean -1
        value, error = information_bound(log_q, 1.0)
        covered += abs(value) < 1.96 * error
    assert covered >= 88


def model_of(log_q, codes):
    return Model("test", 0, {}, sample_latent=lambda n, g: torch.randn(n, 3, generator=g), codes=codes,
                 code_log_likelihood=lambda z, y: log_q(z))


def test_one_code_has_one_value_and_a_perfect_q_has_no_error():
    [value] = measure(model_of(lambda z: torch.zeros(len(z), 1), {"c1": math.log(10)}))
    assert value.value == pytest.approx(math.log(10), rel=1e-12)
    assert value.uncertainty is None
    assert "one likelihood" in value.warnings[0]


def test_log_likelihoods_that_are_not_finite_are_unavailable():
    with pytest.raises(Unavailable, match="not finite"):
        measure(model_of(lambda z: z[:, :1] * math.inf, {"c1": 1.0}))


@pytest.mark.parametrize(
    ("log_q", "entropy", "error", "said"),
    [
        (torch.zeros(3, 2), 1.0, ValueError, "log_q"), (torch.zeros(3, dtype=torch.int64), 1.0, TypeError, "log_q"),
        (torch.zeros(3), math.nan, ValueError, "entropy"), (torch.zeros(1), 1.0, Unavailable, "at least 2 samples"),
    ],
)
def test_arguments_of_another_shape_are_refused(log_q, entropy, error, said):
    with pytest.raises(error, match=said):
        information_bound(log_q, entropy)


def test_a_model_without_codes_offers_none():
    class Plain(GAN):
        def sample_latent(self, n, generator=None):
            return torch.zeros(n, 1)

        def generate(self, z, y=None):
            return z

    model = under_test(Plain(), "plain", {}, CPU)
    assert model.code_log_likelihood is None
    assert model.codes == {}
