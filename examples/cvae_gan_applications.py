"""What CVAE-GAN's paper does with a trained model: attribute morphing, inpainting, data augmentation.

"CVAE-GAN: Fine-Grained Image Generation through Asymmetric Training",
Jianmin Bao, Dong Chen, Fang Wen, Houqiang Li, Gang Hua. ICCV 2017, arXiv:1703.10155.

    ganbench reproduce cvae_gan-mnist
    python examples/cvae_gan_applications.py morph   --ckpt CKPT --data mnist:test --out morph.png
    python examples/cvae_gan_applications.py inpaint --ckpt CKPT --data mnist:test --out inpaint.png
    python examples/cvae_gan_applications.py augment --ckpt CKPT --data mnist:test --out generated.png

CKPT is results/runs/cvae_gan-mnist/seed0/checkpoint.safetensors, or any checkpoint of a model with an encoder of images
and classes; `augment` takes every model with classes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.data import datasets
from ganbench.data.images import grid, save_png, to_float, to_uint8
from ganbench.features.small_cnn import TRAINING, fit_classifier
from ganbench.gan import GAN, capabilities, checkpoint
from ganbench.metrics.discriminability import proportion


def morph(gan: GAN, x: Tensor, y: Tensor, rows: int, columns: int = 10) -> Tensor:
    """Attribute morphing: z of two images of a class, G of the points on the straight line between them.

    z = a z_1 + (1 - a) z_2, z_i = E(x_i, c). A row a class: the first image, `columns` steps from one to the other, the
    second image. Classes with fewer than two images have no row.
    """
    lines = []
    for c in y.unique().tolist()[:rows]:
        pair = x[y == c][:2]
        if len(pair) == 2:
            first, second = gan.encode(pair, torch.full((2,), c))  # type: ignore[operator]
            z = torch.stack([torch.lerp(first, second, a) for a in torch.linspace(0, 1, columns)])
            lines.append(torch.cat([pair[:1], gan.generate(z, torch.full((columns,), c)), pair[1:]]))
    if not lines:
        raise UserError("no class has two images: give more of them.")
    return grid(to_uint8(torch.cat(lines)), columns + 2)


def inpaint(gan: GAN, x: Tensor, y: Tensor, rows: int, hole: float = 0.4, iterations: int = 8) -> Tensor:
    """Inpainting: what is missing is filled with G(E(x, c), c), again and again.

    x <- M x' + (1 - M) x, x' = G(E(x, c), c), M being 1 in the hole: a square of `hole` of the side in the middle,
    which begins at grey. A row an image: the original, the damaged one, that after each iteration.
    """
    x, y = x[:rows], y[:rows]
    side = max(1, round(hole * x.shape[2]))
    at = (x.shape[2] - side) // 2
    mask = torch.zeros_like(x[:1])
    mask[:, :, at : at + side, at : at + side] = 1
    states = [x, x * (1 - mask)]
    for _ in range(iterations):
        again = gan.reconstruct(states[-1], y)  # type: ignore[operator]
        states.append(mask * again + (1 - mask) * x)
    return grid(to_uint8(torch.stack(states, 1).flatten(0, 1)), len(states))


def augment(
    gan: GAN, images: Tensor, labels: Tensor, real: int, generated: int, seed: int = 0
) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """Data augmentation: a classifier of `real` images alone, and one of these and as many `generated` ones as asked.

    Both take as many steps (the real images alone are repeated) and are tested on the images that neither has seen:
    {what it learnt from: (accuracy, its standard error over the test images)}, beside the generated images. The paper
    adds faces of known and of new identities to the training of face verification (Table 2); here it is the same idea
    for a classifier. The generator has learnt from a training set of its own, which is where a gain comes from.
    """
    if len(images) - real < 1 or real < TRAINING.batch_size:
        raise UserError(
            f"--real must be at least {TRAINING.batch_size} and leave some of the {len(images):,} images to test on."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    train, test = order[:real], order[real:]
    y = torch.arange(generated) % gan.num_classes
    made = torch.cat([to_uint8(gan.sample(len(part), part, generator)) for part in y.split(500)])
    again = train.repeat(-(-(real + generated) // real))[: real + generated]
    sets = {
        f"{real:,} real images": (images[again], labels[again]),
        f"{real:,} real and {generated:,} generated images": (
            torch.cat([images[train], made]), torch.cat([labels[train], y])
        ),
    }
    accuracies = {}
    for name, (xs, ys) in sets.items():
        answers = fit_classifier(xs, ys)(images[test]).argmax(1)
        accuracies[name] = proportion(answers == labels[test])
    return made, accuracies


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("morph", "inpaint", "augment"):
        sub = commands.add_parser(name)
        sub.add_argument("--ckpt", type=Path, required=True)
        sub.add_argument("--data", required=True, help="labelled images: mnist:test, folder:PATH, ...")
        sub.add_argument("--out", type=Path, required=True, help="the PNG to write")
        if name == "augment":
            sub.add_argument("--real", type=int, default=500, help="images to learn from; the rest is tested on")
            sub.add_argument("--generated", type=int, default=5000)
        else:
            sub.add_argument("--rows", type=int, default=10)
    options = parser.parse_args(arguments)
    try:
        gan, meta = checkpoint.load(options.ckpt)
        data = datasets.load(options.data)
        if data.labels is None or not gan.num_classes or int(data.labels.max()) >= gan.num_classes:
            raise UserError(f"'{options.data}' and the model '{meta.model}' must have the same classes.")
        if options.what != "augment" and not {"encode", "reconstruct", "generate"} <= set(capabilities(gan)):
            raise UserError(f"the model '{meta.model}' has no encoder: take cvae_gan or cvae.")
        if tuple(data.images.shape[1:]) != gan.image_shape:
            raise UserError(f"the model makes images of {gan.image_shape}, not of {tuple(data.images.shape[1:])}.")
        with torch.inference_mode():
            if options.what == "augment":
                made, accuracies = augment(gan, data.images, data.labels, options.real, options.generated)
                picture = grid(made[:100], 10)
                for name, (accuracy, error) in accuracies.items():
                    print(f"{name}: accuracy {accuracy:.4f} ± {error:.4f} (standard error over the test images)")
            elif options.what == "morph":
                picture = morph(gan, to_float(data.images), data.labels, options.rows)
            else:
                picture = inpaint(gan, to_float(data.images), data.labels, options.rows)
    except UserError as error:
        sys.exit(f"error: {error}")
    save_png(picture, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
