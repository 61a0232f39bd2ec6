"""`ganbench evaluate`: from what the user typed to a Result."""

import time
from dataclasses import dataclass
from pathlib import Path

from ganbench import checkpoint, datasets, evaluation, registry, results, sources
from ganbench.errors import UserError
from ganbench.feature_store import FeatureStore
from ganbench.metrics import Protocol
from ganbench.progress import Reporter
from ganbench.reproduction import (
    cache_folder,
    choose_device,
    describe,
    describe_device,
    held_out_of,
    make_extractors,
    peak_memory,
)
from ganbench.results import Result
from ganbench.sources import Samples
from ganbench.subject import own_extractors, under_test

NUM = 10_000
# The extractor for metrics that are named without one, by the reference's data set.
EXTRACTORS = {"mnist": "mnist-cnn", "digits": "pixels"}


@dataclass(frozen=True)
class Request:
    """The options of `ganbench evaluate`."""

    model: str | None
    ckpt: Path | None
    images: str | None
    reference: str | None
    metrics: list[str] | None
    num: int | None
    batch_size: int | None
    extractor: str | None
    weights: dict[str, Path]
    resolutions: tuple[int, ...] | None
    seed: int
    device: str | None
    no_cache: bool = False


def needs_images(protocol: Protocol) -> bool:
    """True if there is nothing to measure without generated images or a model."""
    return protocol.needs_side("fake") or protocol.asks_model


def run(request: Request, reporter: Reporter) -> Result:
    """Evaluate, and return what is to be stored and shown. Raises UserError for whatever the user has to mend."""
    began = time.monotonic()
    results.git_commit()  # of the code that runs, not of what the checkout becomes meanwhile
    device = choose_device(request.device)
    training = None
    gan = meta = None
    reference_text = request.reference
    if request.ckpt is not None:
        gan, meta = checkpoint.load(request.ckpt, request.model)
        reference_text = reference_text or meta.data or None
        training = {"recipe": meta.recipe, "model": {"name": meta.model, "args": meta.args}, "steps": meta.steps,
                    "data": meta.data, "seed": meta.seed, "commit": meta.commit}  # fmt: skip

    name = (reference_text or "").partition(":")[0]
    default = request.extractor or EXTRACTORS.get(name, "inception-v3")
    registry.require("extractors", default)
    metrics = request.metrics or default_metrics(default)
    requests = evaluation.parse_metrics(metrics, default)

    reference = held_out = None
    if reference_text is not None:
        try:
            reference, held_out = load_reference(reference_text)
        except UserError as error:
            if request.reference is not None:
                raise
            raise UserError(
                f"the checkpoint was trained on '{reference_text}': {error} Or give another --reference."
            ) from error
    if request.images is None and request.ckpt is None and (looks := [r for r in requests if needs_images(r.protocol)]):
        raise UserError(f"'{looks[0].name}' is of generated images: give --model NAME --ckpt FILE or --images SOURCE.")
    # What the user named is opened before weights are downloaded, and these before samples are drawn.
    fake = None if request.images is None else sources.open_source(request.images, request.num, request.seed)
    extractors = make_extractors(requests, request.weights)
    if gan is not None and meta is not None:
        num = request.num or NUM
        with reporter.task(f"sample {num:,}", num) as task:
            fake = sources.generate(gan, num, request.seed, device, advance=task.advance)
        fake.origin.update(model=meta.model, checkpoint_sha256=meta.sha256)
    for samples, what in (
        (fake, request.images and f"--images '{request.images}'"),
        (reference, f"--reference '{reference_text}'"),
    ):
        if samples is not None and len(samples.images) < 2:
            raise UserError(f"{what or '--num 1'} is one image: a metric needs a set of at least two.")
    if fake is not None and request.resolutions and max(request.resolutions) > min(fake.images.shape[2:]):
        raise UserError(
            f"--resolutions {max(request.resolutions)} is more than the images' side of {min(fake.images.shape[2:])}."
        )

    model = None
    if gan is not None and meta is not None:
        model = under_test(gan, meta.model, meta.args, device)
        extractors |= own_extractors(gan, meta.sha256, {r.extractor for r in requests if r.extractor})
    store = FeatureStore(
        extractors, device, request.batch_size, None if request.no_cache else cache_folder(), reporter.progress,
        reporter.say,
    )  # fmt: skip
    measurements, real = evaluation.evaluate(
        requests, store, fake, reference, held_out, request.seed, request.resolutions, model
    )
    return Result(
        fake=describe(fake) if fake else None, reference=describe(reference) if reference else None,
        held_out=describe(held_out) if held_out else None, measurements=measurements, real=real, seed=request.seed,
        training=training, seconds=round(time.monotonic() - began, 1), peak_memory_bytes=peak_memory(device),
        environment=results.environment(describe_device(device)), created=results.now(),
    )  # fmt: skip


def default_metrics(extractor: str) -> list[str]:
    """What is measured when nothing is asked for."""
    if extractor == "inception-v3":
        return ["fid", "kid", "inception_score", "ms_ssim"]
    return [f"fd_{extractor}", f"kd_{extractor}", "ms_ssim"] + ([] if extractor == "pixels" else ["discriminability"])


def load_reference(text: str) -> tuple[Samples, Samples | None]:
    """The reference, and the other split of the same set for the row of real data where there is one."""
    name = text.partition(":")[0]
    if name in registry.names("datasets"):
        data = datasets.load(text)
        return sources.from_dataset(data), held_out_of(data)
    return sources.open_source(text), None
