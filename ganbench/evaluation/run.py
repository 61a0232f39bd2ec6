"""`ganbench evaluate`: from the options of the command to a Result."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ganbench import features
from ganbench.base import registry, weight_files
from ganbench.base.device import choose_device, describe_device, peak_memory
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data import datasets, resizing, sources
from ganbench.data.sources import Samples, class_map
from ganbench.evaluation import measure
from ganbench.evaluation.feature_store import FeatureStore
from ganbench.evaluation.inputs import cache_folder, describe, extractors_here, held_out_of, make_extractors
from ganbench.evaluation.subject import own_extractors, under_test
from ganbench.gan import GAN, checkpoint
from ganbench.metrics import Protocol
from ganbench.metrics.frechet import check_moments
from ganbench.reporting import results
from ganbench.reporting.results import Result

NUM = 10_000
# The extractor of metrics that are named without one, by the data set of the reference.
EXTRACTORS = {"mnist": "mnist-cnn", "digits": "pixels"}


@dataclass(frozen=True)
class Request:
    """The options of `ganbench evaluate`.

    Python code may give samples where the command line has the name of a source, and a model instead of a checkpoint.
    """

    model: str | None
    ckpt: Path | None
    images: str | Samples | None
    reference: str | Samples | None
    metrics: list[str] | None
    num: int | None
    batch_size: int | None
    extractor: str | None
    weights: dict[str, Path]
    resolutions: tuple[int, ...] | None
    seed: int
    device: str | None
    no_cache: bool = False
    resize: str | None = None
    image_labels: Path | None = None
    reference_labels: Path | None = None
    latent: str | None = None
    prior: str | None = None
    classes: int | None = None
    held_out: str | Samples | None = None
    channels: str | None = None
    alpha: str | None = None
    generator_batch: int | None = None
    num_reference: int | None = None
    class_map: str | None = None
    gan: GAN | None = None

    @property
    def of_samples(self) -> bool:
        """Whether there are generated images, or something that makes them."""
        return self.images is not None or self.ckpt is not None or self.gan is not None

    def reading(self, device: torch.device, reporter: Reporter) -> tuple[sources.Options, sources.Options]:
        """Return how --images and --reference are read. Raises UserError for an option that applies to neither."""
        resize = None if self.resize is None else resizing.parse(self.resize)
        latent = None if self.latent is None else sources.parse_latent(self.latent)
        images = sources.Options(
            labels_file=self.image_labels, resize=resize, latent=latent, prior=self.prior, classes=self.classes,
            device=device, progress=reporter.progress, say=reporter.say, channels=self.channels, alpha=self.alpha,
            generator_batch=self.generator_batch,
        )
        given = images.of_a_generator() or ("--image-labels" if self.image_labels else "")
        if given and self.images is None:
            raise UserError(f"{given} says how --images SOURCE is read: give that.")
        if self.reference_labels and self.reference is None:
            raise UserError("--reference-labels says how --reference SOURCE is read: give that.")
        reference = sources.Options(
            labels_file=self.reference_labels, labels_option="--reference-labels", resize=resize, moments_alone=True,
            progress=reporter.progress, say=reporter.say, channels=self.channels, alpha=self.alpha,
        )
        return images, reference


def needs_images(protocol: Protocol) -> bool:
    """Return True if the protocol needs generated images or a model."""
    return protocol.needs_side("fake") or protocol.asks_model


def run(request: Request, reporter: Reporter) -> Result:
    """Evaluate a request and return its result. Raises UserError for every mistake that the user can mend."""
    began = time.monotonic()
    results.git_commit()  # now, since the checkout may change while this runs
    device = choose_device(request.device)
    of_images, of_reference = request.reading(device, reporter)
    pairs = None if request.class_map is None else class_map.parse(request.class_map)
    if pairs is not None and not request.of_samples:
        raise UserError("--class-map is of the classes of generated images: give --images SOURCE or --ckpt FILE.")
    if request.images is not None and request.reference is not None:  # what one of both needs is no mistake
        both = request.images, request.reference
        for_both = [isinstance(each, str) and sources.are_files(each) for each in both]
        if not all(for_both) and any(for_both):
            if not for_both[0]:
                of_images = dataclasses.replace(of_images, channels=None, alpha=None)
            if not for_both[1]:
                of_reference = dataclasses.replace(of_reference, channels=None, alpha=None)
    training = None
    gan = meta = None
    reference_text = request.reference if isinstance(request.reference, str) else None
    if request.gan is not None:
        gan = request.gan
        meta = checkpoint.Checkpoint(type(gan).__name__, sha256=weight_files.digest(gan.state_dict()))
    if request.ckpt is not None:
        gan, meta = checkpoint.load(request.ckpt, request.model)
        if remark := results.is_not_measured(request.ckpt, meta.steps, meta.sha256):
            reporter.say(remark)
        if not isinstance(request.reference, Samples):
            reference_text = reference_text or meta.data or None
        training = {"recipe": meta.recipe, "model": {"name": meta.model, "args": meta.args}, "steps": meta.steps,
                    "data": meta.data, "seed": meta.seed, "commit": meta.commit}

    name = (reference_text or "").partition(":")[0]
    default = request.extractor or EXTRACTORS.get(name, "inception-v3")
    registry.require("extractors", default)
    metrics = request.metrics or default_metrics(default)
    requests = measure.parse_metrics(metrics, default)
    if request.extractor is not None and request.metrics:
        require_use_of(request.extractor, requests)

    if not request.of_samples and (looks := [r for r in requests if needs_images(r.protocol)]):
        raise UserError(f"'{looks[0].name}' is of generated images: give --model NAME --ckpt FILE or --images SOURCE.")
    # Say which weights are missing before images are read; download them only after the images have been found.
    extractors, missing = make_extractors(requests, request.weights, download=False)
    if datasets.offline():
        require_some(requests, missing)

    reference = held_out = None
    of_reference_name = "the reference" if reference_text is None else f"--reference '{reference_text}'"
    if isinstance(request.reference, Samples):
        reference = sources.resized(request.reference, of_reference.resize)
    if reference_text is not None:
        try:
            reference, held_out = load_reference(reference_text, of_reference)
        except UserError as error:
            if request.reference is not None:
                raise
            raise UserError(
                f"the checkpoint was trained on '{reference_text}': {error} Or give another --reference."
            ) from error
    if reference is not None and reference.moments is not None:
        require_moments(reference, of_reference_name)
        if of_reference.resize is not None and not len(reference.images):
            reporter.say(f"--resize changes the images alone: '{reference_text}' holds moments, which stay as they are")
    if request.num_reference is not None:
        reference = drawn_reference(reference, request.num_reference, reference_text or "the reference", request.seed)
    if request.held_out is not None:
        if reference is None:
            raise UserError("--held-out is beside --reference: give that too.")
        held_out = sources.opened(request.held_out, options=of_reference)
        held_out = sources.aligned(held_out, reference, reporter.say)
        if not len(held_out.images):
            raise UserError(f"--held-out '{request.held_out}' holds moments and no images.")
    fake = None
    for_classifiers: list[class_map.Pair] = []
    if request.images is not None:
        fake = sources.opened(request.images, request.num, request.seed, options=of_images)
        if pairs is not None:
            fake, for_classifiers = class_map.to_reference(fake, reference, pairs)
        fake = fake if reference is None else sources.aligned(fake, reference, reporter.say)
    if missing and not datasets.offline():
        extractors, missing = make_extractors(requests, request.weights)
        require_some(requests, missing)
    for name, why in missing.items():
        left_out = [r for r in requests if r.extractor == name]
        reporter.say(f"not measured: {', '.join(r.name for r in left_out)}: {why}{instead_of(left_out)}")
    if gan is not None and meta is not None:
        num = request.num or NUM
        with reporter.task(f"sample {num:,}", num) as task:
            made = sources.generate(
                gan, num, request.seed, device, advance=task.advance, first_class=meta.first_class
            )
        fake = sources.named_like(sources.resized(made, of_images.resize), reference, meta.data, reference_text)
        fake.origin.update(model=meta.model, checkpoint_sha256=meta.sha256)
        if pairs is not None:
            fake, for_classifiers = class_map.to_reference(fake, reference, pairs)
    of_images_name = "--num 1" if request.images is None else "--images"
    if isinstance(request.images, str):
        of_images_name += f" '{request.images}'"
    for samples, what in (
        (fake, of_images_name),
        (reference, "--num-reference 1" if request.num_reference == 1 else of_reference_name),
    ):
        alone = samples is not None and samples.moments is not None and not len(samples.images)
        if samples is not None and len(samples.images) < 2 and not alone:
            raise UserError(f"{what} is one image: a metric needs a set of at least two.")
    if fake is not None and request.resolutions and max(request.resolutions) > min(fake.images.shape[2:]):
        raise UserError(
            f"--resolutions {max(request.resolutions)} is more than the images' side of {min(fake.images.shape[2:])}."
        )

    class_maps = {}
    if for_classifiers:
        assert fake is not None
        class_maps = maps_to_classifiers(for_classifiers, fake, reference, requests, extractors)
    model = None
    if gan is not None and meta is not None:
        model = under_test(gan, meta.model, meta.args, device)
        extractors |= own_extractors(gan, meta.sha256, {r.extractor for r in requests if r.extractor})
    store = FeatureStore(
        extractors, device, request.batch_size, None if request.no_cache else cache_folder(), reporter.progress,
        reporter.say,
    )
    measurements, real = measure.evaluate(
        requests, store, fake, reference, held_out, request.seed, request.resolutions, model, missing,
        class_maps,
    )
    return Result(
        fake=describe(fake) if fake else None, reference=describe(reference) if reference else None,
        held_out=describe(held_out) if held_out else None, measurements=measurements, real=real, seed=request.seed,
        training=training, seconds=round(time.monotonic() - began, 1), peak_memory_bytes=peak_memory(device),
        environment=results.environment(describe_device(device)) | store.pace(), created=results.now(),
    )


def drawn_reference(reference: Samples | None, num: int, text: str, seed: int) -> Samples:
    """Return `num` images of the reference, drawn as --num draws images. Raises UserError if it has not as many."""
    if reference is None:
        raise UserError("--num-reference draws from the reference: give --reference SOURCE too.")
    if not len(reference.images):
        raise UserError(f"--reference '{text}' holds moments and no images to draw from: leave --num-reference out.")
    return sources.take(reference, num, text, seed, "--num-reference")


def maps_to_classifiers(
    pairs: list[class_map.Pair], fake: Samples, reference: Samples | None, requests: list[measure.Request],
    extractors: dict[str, features.FeatureExtractor],
) -> dict[str, dict[int, int]]:
    """Return the class for each label of the images, by classifier, from pairs that are of no class of the reference.

    Raises UserError if no metric compares labels with a classifier, and for a class that a classifier does not have.
    """
    asks = {r.extractor for r in requests if {"fake.logits", "fake.labels"} <= r.protocol.needs}
    if not asks:
        class_map.refuse_unused(pairs, reference)
    return {
        name: class_map.to_classifier(fake, pairs, name, extractor.classes, reference)
        for name, extractor in extractors.items() if name in asks
    }


def require_moments(reference: Samples, what: str) -> None:
    """Raise UserError unless the moments that came with a file can be those of a set of features."""
    moments, n = reference.moments or {}, int(reference.origin.get("moments", {}).get("n") or 0)
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mean in moments:
            try:
                check_moments(moments[mean], moments[covariance], n)
            except ValueError as error:
                raise UserError(f"{what}: '{mean}' and '{covariance}': {error}. Compute them again.") from error


def require_some(requests: list[measure.Request], missing: dict[str, str]) -> None:
    """Raise UserError if no metric can be measured, because their extractors are missing."""
    if missing and all(r.extractor in missing for r in requests):
        raise UserError(f"{next(iter(missing.values()))}{instead_of(requests)}")


def instead_of(requests: list[measure.Request]) -> str:
    """Return the end of a message about metrics whose extractor is missing: the same formulas over one that is here."""
    for name in extractors_here():
        formulas = [r.protocol.stem for r in requests if name != "pixels" or not asks_logits(r.protocol)]
        if formulas:
            names = ",".join(f"{formula}_{name}" for formula in formulas)
            return f" Over a network that is here, for other numbers: --metrics {names}."
    return ""


def asks_logits(protocol: Protocol) -> bool:
    """Return True if a protocol needs a classifier."""
    return any(need.endswith(".logits") for need in protocol.needs)


def require_use_of(extractor: str, requests: list[measure.Request]) -> None:
    """Raise UserError if no metric is over the extractor that was given for metrics named without one."""
    if any(r.extractor == extractor or (r.extractor and r.name == r.protocol.stem) for r in requests):
        return
    for r in requests:
        if r.protocol.published and r.name == r.protocol.published[0]:
            raise UserError(
                f"--extractor {extractor}: '{r.name}' is the name kept for {r.extractor}. Over another network the "
                f"formula is '{r.protocol.stem}': --metrics {r.protocol.stem} --extractor {extractor}."
            )
    raise UserError(f"--extractor {extractor}: no metric asked for takes one ({requests[0].name}): leave it out.")


def default_metrics(extractor: str) -> list[str]:
    """Return the metrics that are measured if none are asked for."""
    if extractor == "inception-v3":
        return ["fid", "kid", "inception_score", "ms_ssim"]
    return [f"fd_{extractor}", f"kd_{extractor}", "ms_ssim"] + ([] if extractor == "pixels" else ["discriminability"])


def load_reference(text: str, options: sources.Options) -> tuple[Samples, Samples | None]:
    """Return the reference, and the other split of its set for the row of real data if there is one."""
    if Path(text).suffix.lower() in sources.GENERATORS:
        raise UserError(f"--reference '{text}': a generator makes no reference, which is a fixed set of images.")
    name = text.partition(":")[0]
    if name == "folder" and options.labels_file is None:
        data = datasets.load(text, how=options.decoding, progress=options.progress)
        return sources.from_dataset(data, options), held_out_of(data, options)
    if name in registry.names("datasets") and options.labels_file is None and not options.of_image_files():
        data = datasets.load(text)
        held_out = held_out_of(data)
        return sources.resized(sources.from_dataset(data), options.resize), (
            held_out and sources.resized(held_out, options.resize)
        )
    return sources.open_source(text, options=options), None
