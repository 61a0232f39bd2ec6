"""The model under test as metrics see it: functions of CPU tensors, whatever device the model is on."""

from collections.abc import Callable

import torch
from torch import Tensor

from ganbench.base.precision import full_float32
from ganbench.data.images import to_float
from ganbench.features import FeatureExtractor, Features
from ganbench.gan import GAN, capabilities
from ganbench.metrics import Model, Space

BATCH = 500
# Extractors that are parts of the model, and the methods that they call.
METHODS = {
    "encoder": "encode", "encoder-hidden": "encoder_features", "discriminator": "discriminator_features",
}


def under_test(gan: GAN, name: str, args: dict[str, object], device: torch.device) -> Model:
    """Return the functions that a metric may ask of a trained model; None for each capability that it lacks.

    Images go in as uint8 and come out as float32 in [-1, 1], in batches of 500.
    """
    gan = gan.to(device).eval()
    can = capabilities(gan)
    has_codes = {"codes", "code_log_likelihood", "generate"} <= set(can)
    levels = {"pyramid", "sample_level"} <= set(can) and not gan.num_classes

    def of_latents(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @torch.inference_mode()
        def call(z: Tensor, y: Tensor | None = None) -> Tensor:
            labels = [None] * len(z.split(BATCH)) if y is None else y.split(BATCH)
            pairs = zip(z.split(BATCH), labels, strict=True)
            with full_float32():
                parts = [function(a.to(device), None if b is None else b.to(device)) for a, b in pairs]
            return torch.cat([x.float().cpu() for x in parts])

        return call

    @torch.inference_mode()
    def code_log_likelihood(z: Tensor, y: Tensor | None = None) -> Tensor:
        logs = []
        with full_float32():
            for rows in torch.arange(len(z)).split(BATCH):
                latents, labels = z[rows].to(device), None if y is None else y[rows].to(device)
                logs.append(gan.code_log_likelihood(gan.generate(latents, labels), latents).float().cpu())
        return torch.cat(logs)

    @torch.inference_mode()
    def pyramid(images: Tensor) -> list[Tensor]:
        with full_float32():
            parts = [gan.pyramid(to_float(batch).to(device)) for batch in images.split(BATCH)]  # type: ignore[operator]
        return [torch.cat([x.float().cpu() for x in level]) for level in zip(*parts, strict=True)]

    @torch.inference_mode()
    def sample_level(level: int, images: Tensor, generator: torch.Generator) -> Tensor:
        draw: Callable[..., Tensor] = gan.sample_level  # type: ignore[assignment]
        with full_float32():
            parts = [draw(level, to_float(x).to(device), generator) for x in images.split(BATCH)]
        return torch.cat([x.float().cpu() for x in parts])

    def of_images(method: str):  # type: ignore[no-untyped-def]
        @torch.inference_mode()
        def call(images: Tensor) -> Tensor:
            parts = [getattr(gan, method)(to_float(batch).to(device)).float().cpu() for batch in images.split(BATCH)]
            return torch.cat(parts)

        return call if method in can else None

    return Model(
        name, gan.num_classes, dict(args), sample_latent=gan.sample_latent,
        generate=of_latents(gan.generate) if "generate" in can else None, encode=of_images("encode"),
        reconstruct=of_images("reconstruct"), classify=of_images("classify"),
        codes={code.name: code.entropy for code in gan.codes()} if has_codes else {},
        code_log_likelihood=code_log_likelihood if has_codes else None,
        pyramid=pyramid if levels else None, sample_level=sample_level if levels else None,
        latent_spaces=tuple(
            Space(space.name, of_latents(space.of), of_latents(space.generate), space.straight)
            for space in (gan.latent_spaces() if "latent_spaces" in can else ())
        ),
    )


class ModelFeatures(FeatureExtractor):
    """Features that the model under test has learnt: those of its encoder or of its discriminator."""

    source = "the checkpoint under test"

    def __init__(self, name: str, gan: GAN, sha256: str):
        super().__init__()
        self.name = name  # type: ignore[misc]  # 'encoder' or 'discriminator', not one for the class
        self.gan, self.sha256 = gan, sha256

    def forward(self, images: Tensor) -> Features:
        return Features(getattr(self.gan, METHODS[self.name])(to_float(images)).flatten(1))


def own_extractors(gan: GAN, sha256: str, names: set[str]) -> dict[str, FeatureExtractor]:
    """Return the extractors that are parts of the model: those in `names` that it has, by name."""
    can = capabilities(gan)
    return {n: ModelFeatures(n, gan, sha256).eval() for n in sorted(names & set(METHODS)) if METHODS[n] in can}
