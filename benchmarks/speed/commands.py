"""Whole commands over JPEG files: start, reading, decoding, network and formula, beside torch-fidelity's command.

Both take Inception-v3 with the same random weights, since the published ones need a download, over the same files:
GANBENCH_BENCH_IMAGES in each of two folders (250 unless it is set) of 256 pixels.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.speed import Case

NUMBER, SIDE = int(os.environ.get("GANBENCH_BENCH_IMAGES", "250")), 256


def write_images(folder: Path, seed: int) -> None:
    """Write JPEG files of smooth random pictures with some noise, which compress about as photographs do."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(NUMBER):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:05}.jpg", quality=90)


def write_weights(file: Path) -> None:
    """Write random weights of torch-fidelity's Inception-v3."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: object, **options: object) -> None:  # type: ignore[override]
            return

    torch.manual_seed(0)
    torch.save({}, file)
    net = Blank("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(net.state_dict(), file)


def cases() -> Iterator[Case]:
    """The cases of this part."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        weights = place / "random.pth"
        write_images(place / "a", 0)
        write_images(place / "b", 1)
        write_weights(weights)

        def command(*args: object) -> dict[str, object]:
            done = subprocess.run([sys.executable, "-m", *map(str, args)], cwd=place, check=True, capture_output=True)
            found: dict[str, object] = json.loads(done.stdout)
            return found

        def ours() -> object:
            result = command(
                "ganbench", "evaluate", "--images", "a", "--reference", "b", "--metrics", "fd_inception-v3",
                "--weights", f"inception-v3={weights}", "--no-cache", "--json", "--quiet", "--device", "cpu",
            )
            return result["measurements"][0]["value"]  # type: ignore[index]

        def theirs() -> object:
            return command(
                "torch_fidelity.fidelity", "--cpu", "--fid", "--input1", "a", "--input2", "b", "--json", "--silent",
                "--no-datasets-download", "--feature-extractor-weights-path", weights, "--cache-root", place / "cache",
            )["frechet_inception_distance"]

        def agree(value: object, others: dict[str, object]) -> None:
            for other in others.values():
                assert abs(float(value) / float(other) - 1) < 1e-3, (value, other)  # type: ignore[arg-type]

        yield Case(
            f"FID, whole command, {NUMBER:,} + {NUMBER:,} JPEG files of {SIDE} px", ours, {"torch-fidelity": theirs},
            goals={"torch-fidelity": 2.5}, repeats=1, warm_up=0, count=2 * NUMBER, unit="images", agree=agree,
        )
