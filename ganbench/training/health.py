"""Rules that notice trouble while a run trains: losses explode, the generator collapses, the discriminator has won.

A recipe can add limits to what its model logs (`[watch] limits`).

The rules read the log and a few samples on a fixed latent. They draw nothing from the training's random numbers, so
that watching a run does not change it. Their state is saved, so that a resumed run reports the same at the same steps.
They are coarse on purpose: they must not end a healthy run.
"""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.data.datasets import Dataset
from ganbench.data.images import to_uint8
from ganbench.gan import GAN
from ganbench.metrics.ms_ssim import ms_ssim
from ganbench.training.growth import reduced

EVERY = 500  # steps between two looks at the samples
GRACE = 1000  # updates of G before its samples, or a lost game, are judged
SAMPLES = 64
EXPLODED = 1000.0  # times the median of the losses logged before (or times 1 if that is larger)
REMEMBERED = 100  # logged losses that the median is taken over
WON_D, WON_G, WON_LINES = 0.01, 4.0, 10  # D's loss below and G's loss above, in this many logged steps in a row
ALIKE = 0.95  # mean MS-SSIM of pairs from which samples count as one image
SPREAD = 0.05  # share of the deviation of real images of a class


class Health:
    """The rules and what they remember. Call `update_of_g` after each step of G's optimiser.

    data: the training set, with which samples are compared. game: names of the losses of D and G that show whether D
    has won (`GAN.game`); None if none do. limits: the largest healthy value of logged values, by name.
    """

    def __init__(self, data: Dataset, game: tuple[str, str] | None, limits: Mapping[str, float] | None = None):
        self.real, self.size = data.images[_pairs_of_a_class(data.labels, len(data))], 0
        self.real_spread, self.real_alike = _spread(self.real), _alike(self.real)
        self.game, self.limits = game, dict(limits or {})
        self.above: dict[str, int] = {}  # logged steps in a row above the limit
        self.updates, self.won, self.collapsed = 0, 0, 0
        self.losses: dict[str, list[float]] = {}

    def update_of_g(self, *_: object) -> None:
        """Count one more update of G."""
        self.updates += 1

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to know."""
        return {"updates": self.updates, "won": self.won, "collapsed": self.collapsed, "losses": self.losses,
                "above": self.above}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.updates, self.won, self.collapsed = state["updates"], state["won"], state["collapsed"]
        self.losses = {name: list(values) for name, values in state["losses"].items()}
        self.above = dict(state.get("above", {}))  # a state of an earlier version has none

    def look_at_losses(self, losses: Mapping[str, float]) -> str | None:
        """Return what is wrong with the losses of a logged step, in words, or None."""
        trouble = None
        for name, value in losses.items():
            before = self.losses.setdefault(name, [])
            if len(before) >= 10 and abs(value) > EXPLODED * max(1.0, median(map(abs, before))):
                trouble = f"{name} has exploded ({value:.3g}; its median was {median(before):.3g})"
            before.append(value)
            del before[:-REMEMBERED]
        if self.game:
            (d, g), (d_loss, g_loss) = self.game, (losses.get(name, math.nan) for name in self.game)
            self.won = self.won + 1 if self.updates > GRACE and abs(d_loss) < WON_D and g_loss > WON_G else 0
            if self.won >= WON_LINES:
                trouble = f"the discriminator has won ({d} {d_loss:.3g}, {g} {g_loss:.3g}): G learns nothing any more"
        for name, most in self.limits.items():
            above = self.updates > GRACE and losses.get(name, -math.inf) > most
            self.above[name] = self.above.get(name, 0) + 1 if above else 0
            if self.above[name] >= WON_LINES:
                trouble = f"{name} stays above its limit ({losses[name]:.3g}, more than {most:g})"
        return trouble

    def look_at_samples(self, gan: GAN, size: int = 0) -> str | None:
        """Return what is wrong with samples of `gan`, in words, or None. Two looks in a row must agree.

        size: side of the images that `gan` was trained on so far, which real images are then reduced to; 0: all of it.
        """
        if self.updates <= GRACE:
            return None
        if size != self.size:
            real, self.size = _coarse(self.real, size), size
            self.real_spread, self.real_alike = _spread(real), _alike(real)
        images = few_samples(gan)
        spread, alike = _spread(images), _alike(images)
        reason = None
        if spread < SPREAD * self.real_spread:
            reason = f"deviation over samples {spread:.2g} of 255, of real images {self.real_spread:.2g}"
        elif alike > ALIKE > self.real_alike:
            reason = f"MS-SSIM of samples {alike:.3f}, of real images {self.real_alike:.3f}"
        self.collapsed = self.collapsed + 1 if reason else 0
        return f"the generator has collapsed ({reason})" if self.collapsed > 1 else None


@torch.no_grad()
def few_samples(gan: GAN) -> Tensor:
    """Return 64 uint8 samples on a fixed latent, two of each class in turn where the model has classes."""
    training = gan.training
    gan.eval()
    y = torch.arange(gan.num_classes).repeat_interleave(2).repeat(SAMPLES)[:SAMPLES] if gan.num_classes else None
    x = gan.sample(SAMPLES, None if y is None else y.to(gan.device), torch.Generator().manual_seed(1))
    gan.train(training)
    return to_uint8(x.float().nan_to_num(0.0)).cpu()


def _pairs_of_a_class(labels: Tensor | None, n: int) -> Tensor:
    """Rows of 64 training images in the order of `few_samples`: neighbours share a class."""
    if labels is None:
        return torch.arange(n)[:SAMPLES]
    of_class = [(labels == c).nonzero().squeeze(1)[: SAMPLES // 2 * 2] for c in labels.unique()]
    pairs = [rows[i : i + 2] for i in range(0, SAMPLES, 2) for rows in of_class if len(rows[i : i + 2]) == 2]
    return torch.cat(pairs)[:SAMPLES] if pairs else torch.arange(n)[:SAMPLES]


def _coarse(images: Tensor, size: int) -> Tensor:
    """The uint8 images reduced to size x size and enlarged again, as a model that still grows would make them."""
    small = reduced(images, size)
    return small if small is images else F.interpolate(small, size=images.shape[2:], mode="nearest")


def _spread(images: Tensor) -> float:
    """Standard deviation of pixels within pairs of neighbours, in 0..255: their RMS difference over sqrt(2)."""
    a, b = images[0::2].float(), images[1::2].float()
    n = min(len(a), len(b))
    return math.sqrt(float((a[:n] - b[:n]).square().mean()) / 2) if n else 0.0


def _alike(images: Tensor) -> float:
    """Mean MS-SSIM of pairs of neighbours."""
    a, b = images[0::2], images[1::2]
    n = min(len(a), len(b))
    return float(ms_ssim(a[:n], b[:n]).mean()) if n else 1.0
