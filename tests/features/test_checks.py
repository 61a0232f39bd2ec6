"""What an extractor may be given, and the sentence for what it may not."""

import numpy as np
import pytest
import torch

from ganbench.data.streams import Images
from ganbench.features.checks import check_form, check_images

UINT8 = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
NOISE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Stream(Images):
    def __init__(self, *shape):
        self.shape = torch.Size(shape)

    def batches(self, size, rows=None):
        raise AssertionError("a check reads no images")


def str_of(value):
    """A name of a test that is the same in every process."""
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize("images", [
    UINT8, UINT8 + 255, UINT8[:, :1], Stream(10, 1, 28, 28), Stream(1, 3, 4, 6),
    NOISE * 255, NOISE * 255 - 40, NOISE * 400, NOISE * 3,  # a generator without a limit leaves the range; dark ones
    NOISE * 0, NOISE * 0.4, (NOISE - 0.5) * 0.8, torch.full((1, 3, 8, 8), 1.5),  # black, and nearly black
], ids=str_of)
def test_images_in_the_format_pass(images):
    check_form(images)
    check_images(images)


@pytest.mark.parametrize(("images", "error", "words"), [
    (UINT8.numpy(), TypeError, "these are of type ndarray"),
    ([UINT8], TypeError, "these are of type list"),
    (UINT8.long(), TypeError, r"these are int64 of shape \(2, 3, 8, 8\)"),
    (NOISE.double(), TypeError, "these are float64"),
    (NOISE.half(), TypeError, "these are float16"),
    (UINT8 > 0, TypeError, "these are bool"),
    (UINT8[0], ValueError, r"of shape N x 1\|3 x H x W; these are uint8 of shape \(3, 8, 8\)"),
    (UINT8.permute(0, 2, 3, 1), ValueError, r"these are uint8 of shape \(2, 8, 8, 3\)"),
    (NOISE[:, :2], ValueError, r"these are float32 of shape \(2, 2, 8, 8\)"),
    (UINT8[:0], ValueError, r"these are uint8 of shape \(0, 3, 8, 8\)"),
    (UINT8[..., :0], ValueError, r"these are uint8 of shape \(2, 3, 8, 0\)"),
    (Stream(5, 4, 8, 8), ValueError, r"these are uint8 of shape \(5, 4, 8, 8\)"),
    (np.zeros(3), TypeError, "ndarray"),
], ids=str_of)
def test_another_type_or_shape_is_refused_before_a_pixel_is_read(images, error, words):
    for check in (check_form, check_images):
        with pytest.raises(error, match=rf"^images are uint8, or float32 in 0\.\.255, .*{words}"):
            check(images)


@pytest.mark.parametrize(("images", "words"), [
    (NOISE * 2 - 1, r"look like \[-1, 1\]"),
    (torch.tanh(20 * (NOISE - 0.5)), r"look like \[-1, 1\]"),
    (torch.full((1, 1, 4, 4), -1.0), r"look like \[-1, 1\]"),
    (NOISE, r"look like \[0, 1\]"),
    (NOISE.round(), r"look like \[0, 1\]"),
    (NOISE * 65_535, "reach from"),
    (NOISE * -4_000, "reach from"),
    (NOISE.index_fill(0, torch.tensor([1]), float("nan")), "hold NaN or infinite"),
    (NOISE * float("inf"), "hold NaN or infinite"),
    (NOISE * -float("inf"), "hold NaN or infinite"),
], ids=str_of)
def test_another_range_is_refused_in_one_line(images, words):
    check_form(images)
    with pytest.raises(ValueError, match=rf"^images are uint8, or float32 in 0\.\.255; these .*{words}") as error:
        check_images(images)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 120
