"""A small convolutional classifier of our own: features and class probabilities for small images, without a download.

`mnist-cnn` comes with the package. The same recipe (`TRAINING` below) trains one for any labelled set:
`ganbench train-classifier fashion-mnist --out fashion-mnist-cnn.safetensors`, used as
`--extractor small-cnn --weights small-cnn=fashion-mnist-cnn.safetensors`.
"""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ganbench.base import schema, weight_files
from ganbench.base.errors import UserError, shortened
from ganbench.base.files import atomic_path, parse_json, sha256_of
from ganbench.data.images import to_float
from ganbench.features import FeatureExtractor, Features

BUNDLED = Path(__file__).parent / "weights" / "mnist-cnn.safetensors"
_LINE = schema.Text(200, line=True)
METADATA = schema.Table(
    {"channels": schema.Whole(1), "size": schema.Whole(4, 4096), "classes": schema.List(_LINE), "dataset": _LINE},
    others=schema.Plain(),
)
BUNDLED_SHA256 = "186b1e83342ff32c014bae564bcbda0e88a2d9a7809761266569d183aac40c45"


class SmallCNN(FeatureExtractor):
    """Six 3x3 convolutions with batch norm, 128 pooled features, one linear layer: for images of about 20 to 64 px.

    Its file of weights says what it was trained on. Images of another size than the training images are resized to that
    size (bilinear, antialiased). A one-channel network averages colour channels.
    """

    name = "small-cnn"
    source = "trained by `ganbench train-classifier`"

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__()
        if weights is None:
            raise UserError(
                "the extractor 'small-cnn' needs weights: train them with `ganbench train-classifier NAME --out FILE` "
                "and give --weights small-cnn=FILE."
            )
        try:
            header = weight_files.read_header(weights)
            meta = parse_json(header.metadata["small_cnn"])
            METADATA.check(meta, "")
            shape = meta["channels"], meta["size"], meta["classes"]
            with torch.device("meta"):  # takes no memory before it is known to be the file's network
                self.build(*shape)
            if reason := weight_files.misfit(self.state_dict(), header.tensors):
                raise ValueError(reason)
            self.build(*shape)
            self.load_state_dict(weight_files.read_tensors(weights))
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, OverflowError) as error:
            reason = "there are no such metadata" if isinstance(error, KeyError) else shortened(str(error))
            raise UserError(
                f"{weights} is not a small-cnn weights file ({reason}): train one with `ganbench train-classifier`."
            ) from error
        self.sha256 = sha256_of(weights)
        self.trained_on = meta["dataset"]
        self.official = self.sha256 == BUNDLED_SHA256
        self.name = f"{self.trained_on}-cnn"  # type: ignore[misc]  # the instance's own name

    def build(self, channels: int, size: int, classes: list[str]) -> None:
        """Make the layers for images of `channels` x `size` x `size` and these classes."""
        self.channels, self.size, self.classes = channels, size, tuple(classes)

        def block(cin: int, cout: int) -> list[nn.Module]:
            return [nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]

        self.body = nn.Sequential(
            *block(channels, 32), *block(32, 32), nn.MaxPool2d(2),  # N x 32 x S/2 x S/2
            *block(32, 64), *block(64, 64), nn.MaxPool2d(2),        # N x 64 x S/4 x S/4
            *block(64, 128), *block(128, 128),                      # N x 128 x S/4 x S/4
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),                  # N x 128
        )
        self.head = nn.Linear(128, len(classes))

    def batch_size(self, device: torch.device, shape: torch.Size) -> int:
        pixels = shape[-1] * shape[-2]
        if device.type == "cpu":
            return max(8, min(128, (1 << 19) // pixels))
        return max(64, min(4096, (1 << 24) // pixels))

    def forward(self, images: Tensor) -> Features:
        x = to_float(images)
        if x.shape[1] != self.channels:
            x = x.mean(1, keepdim=True) if self.channels == 1 else x.expand(-1, self.channels, -1, -1)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        features = self.body(x)
        return Features(features, self.head(features))


class MnistCNN(SmallCNN):
    """The bundled classifier of MNIST digits, 128 features and 10 classes."""

    name = "mnist-cnn"
    source = "trained by `ganbench train-classifier mnist` on the 60,000 training images"
    licence = "Apache-2.0"

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__(weights or BUNDLED)


@dataclass(frozen=True)
class Training:
    """The recipe of a classifier. Nothing in it was chosen on a test set; the test error is read once, at the end."""

    epochs: int = 14
    batch_size: int = 128
    learning_rate: float = 2e-3  # AdamW, one cycle: linear warm-up over 5 % of the steps, then cosine to zero
    weight_decay: float = 0.02
    rotate: float = 10.0  # degrees, uniform in +-
    scale: float = 0.1  # relative, uniform in +-
    shift: float = 0.08  # of the side, uniform in +-
    ema_decay: float = 0.998
    seed: int = 0


TRAINING = Training()


def augment(x: Tensor, recipe: Training, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift float images N x C x H x W in [-1, 1] at random; border pixels are repeated outside."""
    n = len(x)

    def uniform(bound: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * bound

    angle, scale = uniform(math.radians(recipe.rotate)), 1 + uniform(recipe.scale)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin, 2 * uniform(recipe.shift)], 1),
                         torch.stack([sin, cos, 2 * uniform(recipe.shift)], 1)], 1)
    flow = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, flow, padding_mode="border", align_corners=False)


def train_classifier(
    images: Tensor, labels: Tensor, classes: tuple[str, ...], out: Path, dataset: str, recipe: Training = TRAINING,
    advance: Callable[[str], None] | None = None,
) -> SmallCNN:
    """Train a SmallCNN on uint8 images N x C x S x S with int64 labels, and write its safetensors file to `out`.

    `advance` is called once a step with a text about the progress. Raises UserError for images that are not
    square, and for fewer than a batch of them.
    """
    n, channels, height, width = images.shape
    if height != width:
        raise UserError(f"the classifier needs square images, and those of '{dataset}' are {width}x{height}.")
    if n < recipe.batch_size:
        raise UserError(f"the classifier needs at least {recipe.batch_size} images, and '{dataset}' has {n}.")
    average = _train(images, labels, classes, recipe, advance)
    meta = {"dataset": dataset, "channels": channels, "size": width, "classes": list(classes),
            "training": asdict(recipe)}
    # Half precision on disk only: half the size, and the same answers (the features move by 1e-3 relative).
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in average.state_dict().items()}
    with atomic_path(out) as part:
        save_file(state, part, metadata={"small_cnn": json.dumps(meta)})
    return average


def _train(
    images: Tensor, labels: Tensor, classes: tuple[str, ...], recipe: Training,
    advance: Callable[[str], None] | None = None,
) -> SmallCNN:
    n, channels, _, width = images.shape
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    net = SmallCNN.__new__(SmallCNN)
    nn.Module.__init__(net)
    net.build(channels, width, list(classes))
    net.to(memory_format=torch.channels_last)
    average = copy.deepcopy(net).requires_grad_(False)

    steps = recipe.epochs * (n // recipe.batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.05)
    step = 0
    for epoch in range(recipe.epochs):
        order = torch.randperm(n, generator=generator)
        for rows in order.split(recipe.batch_size)[: n // recipe.batch_size]:
            x = augment(to_float(images[rows]), recipe, generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net.head(net.body(x)), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            decay = min(recipe.ema_decay, (1 + step) / (10 + step))
            for a, b in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
                a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)
            if advance:
                advance(f"epoch {epoch + 1}/{recipe.epochs}  loss {loss.item():.3f}" if step % 50 == 0 else "")
    return average.eval()


@torch.inference_mode(False)
def fit_classifier(images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Train a SmallCNN on uint8 images N x C x S x S and int64 labels; return it as a function images -> logits N x K.

    It is trained as the bundled classifier was. Raises ValueError if the images are not square or fewer than a batch.
    """
    if images.shape[2] != images.shape[3] or len(images) < TRAINING.batch_size:
        raise ValueError(f"a classifier is fitted to {TRAINING.batch_size} square images or more, not {images.shape}")
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        net = _train(images, labels, classes, TRAINING)

    @torch.inference_mode()
    def predict(x: Tensor) -> Tensor:
        return torch.cat([net(batch).logits for batch in x.split(500)])

    return predict
