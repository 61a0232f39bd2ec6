"""The formulas as plain functions of tensors."""

import inspect

import pytest
import torch

import ganbench.metrics
from ganbench.metrics import Inputs, Side, manifold

G = torch.Generator().manual_seed(0)
REAL, FAKE = torch.randn(80, 6, generator=G), torch.randn(70, 6, generator=G) * 0.8 + 0.3


def test_all_exported_names_exist_and_have_a_docstring():
    for name in ganbench.metrics.__all__:
        thing = getattr(ganbench.metrics, name)
        assert callable(thing), name
        assert inspect.getdoc(thing), name


@pytest.mark.parametrize("stem", ["precision", "recall", "density", "coverage"])
def test_neighbourhood_functions_equal_the_protocols(stem):
    [protocol] = [p for p in manifold.PROTOCOLS if p.stem == stem]
    images = torch.zeros(80, 1, 1, 1, dtype=torch.uint8)
    inputs = Inputs(Side(images, features=REAL), Side(images[:70], features=FAKE), None, torch.Generator())
    [value] = protocol.compute(inputs)
    assert getattr(ganbench.metrics, stem)(REAL, FAKE) == value.value
    assert getattr(ganbench.metrics, stem)(REAL, FAKE, k=12) != value.value


def test_distances_can_be_imported_by_name():
    from ganbench.metrics import frechet_distance, inception_score, kernel_distance, mmd_rbf, ms_ssim

    assert frechet_distance(REAL, FAKE) > frechet_distance(REAL, REAL) == pytest.approx(0, abs=1e-10)
    assert kernel_distance(REAL, FAKE).mean() > 0
    assert mmd_rbf(REAL, FAKE) > mmd_rbf(REAL, REAL) == 0
    assert inception_score(torch.zeros(50, 10)).tolist() == pytest.approx([1.0] * 10)
    flat = torch.full((2, 1, 16, 16), 7, dtype=torch.uint8)
    assert ms_ssim(flat, flat).tolist() == [1.0, 1.0]


# --- Arguments

Z, Y = torch.randn(40, 3, generator=G), torch.arange(40) % 2
IMAGES = torch.randint(256, (8, 1, 16, 16), generator=G, dtype=torch.uint8)
LATENT = torch.ones(40)
CALLS = {
    "accuracy": (REAL, torch.arange(80) % 6),
    "authenticity": (REAL[:, 0], REAL[:, 1]),
    "choose_sigma": (REAL, FAKE),
    "cluster_error": (Y, 1 - Y),
    "convergence_measure": (REAL[:, 0], FAKE[:, 0], 0.5),
    "coverage": (REAL, FAKE),
    "density": (REAL, FAKE),
    "few_labels_probe": (Z, Y, Z, Y, 2, 2, G),
    "frechet_distance": (REAL, FAKE),
    "frechet_standard_error": (REAL, FAKE),
    "inception_score": (REAL,),
    "information_bound": (torch.randn(40, generator=G), 2.3),
    "kernel_distance": (REAL, FAKE),
    "kl_divergence": (torch.arange(5), torch.arange(5)),
    "kl_to_uniform": (torch.arange(5),),
    "linear_separability": (Y[:, None], 1 - Y[:, None]),
    "mean_absolute_errors": (IMAGES / 255, IMAGES / 300),
    "mean_squared_errors": (IMAGES / 255, IMAGES / 300),
    "mixture_modes": (REAL, FAKE, 0.1),
    "mmd2_unbiased": (REAL, FAKE),
    "mmd_rbf": (REAL, FAKE),
    "modes_found": (torch.arange(5),),
    "moments": (REAL,),
    "monge_distance": (REAL, REAL + 1, torch.eye(6)),
    "ms_ssim": (IMAGES, IMAGES),
    "nearest": (REAL, FAKE),
    "nearest_training_images": (IMAGES, IMAGES),
    "nn_transfer": (Z, Y, Z, Y),
    "parzen_log_likelihood": (REAL, FAKE, 0.1),
    "path_lengths": (lambda z, y: z, lambda x: (x, None), Z, Z + 1, LATENT),
    "perceptual_path_length": (LATENT,),
    "precision": (REAL, FAKE),
    "probe": (Z, Y, Z, "logistic", G),
    "realism": (REAL,),
    "recall": (REAL, FAKE),
    "sliced_wasserstein": (REAL, REAL + 1, G),
    "test_error": (REAL, torch.arange(80) % 6),
    "y_from_z": (Z, Y, Z, Y),
    "z_from_y": (Z, Y, Z, Y),
}


def wrong(x):
    """Return tensors of another type, number of axes, length of rows, or with a value that is not finite."""
    yield x.numpy()
    yield x.tolist()
    yield x[None, None]
    yield x.to(torch.complex64)
    if x.is_floating_point():
        broken = x.clone()
        broken.view(-1)[3] = float("nan")
        yield broken
        if x.ndim == 2:
            yield (x * 10).to(torch.uint8).view(*x.shape, 1, 1)  # images in place of features
    elif x.dtype == torch.int64:
        yield x / 2


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_type_or_shape_is_named_in_one_line(name):
    function, arguments = getattr(ganbench.metrics, name), CALLS[name]
    function(*arguments)
    for i, x in enumerate(arguments):
        parameter = list(inspect.signature(function).parameters)[i]
        for bad in wrong(x) if isinstance(x, torch.Tensor) else ():
            if name == "linear_separability" and isinstance(bad, torch.Tensor) and bad.dtype == torch.float32:
                continue  # binary numbers of any type
            with pytest.raises((TypeError, ValueError)) as raised:
                function(*arguments[:i], bad, *arguments[i + 1 :])
            message = str(raised.value)
            assert parameter in message, message
            assert "\n" not in message


@pytest.mark.parametrize(
    "name", [n for n, (x, *rest) in CALLS.items() if rest and getattr(rest[0], "shape", 0) == FAKE.shape]
)
def test_features_of_two_lengths_are_refused(name):
    function, arguments = getattr(ganbench.metrics, name), CALLS[name]
    with pytest.raises(ValueError, match=r"real has 6 .* a row, and fake has 5|one kind and length"):
        function(arguments[0], arguments[1][:, :5], *arguments[2:])


def test_every_public_function_of_tensors_is_called_here():
    functions = {n for n in ganbench.metrics.__all__ if inspect.isfunction(getattr(ganbench.metrics, n))}
    of_others = {"check_moments", "frechet_distance_from_moments", "features_of", "known", "require_features",
                 "require_labels", "require_logits"}
    assert functions == set(CALLS) | of_others


def test_values_out_of_range_are_refused():
    from ganbench.metrics import convergence_measure, kl_to_uniform, mmd_rbf, ms_ssim, precision

    with pytest.raises(ValueError, match=r"a must have pixels in 0\.\.255, not in -1\.\.1"):
        ms_ssim(torch.linspace(-1, 1, 256).view(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="one is -3"):
        kl_to_uniform(torch.tensor([4, -3]))
    with pytest.raises(ValueError, match="sigma must be positive, not 0"):
        mmd_rbf(REAL, FAKE, 0)
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        precision(REAL, FAKE, 0)
    with pytest.raises(ValueError, match="gamma must be between 0 and 1, not 2"):
        convergence_measure(REAL[:, 0], FAKE[:, 0], 2)
