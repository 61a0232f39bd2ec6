"""The Inception-v3 of 2015-12-05, the network that FID, KID and the Inception Score are defined over.

Graph and TF1-exact resizing are torch-fidelity's; the weights are checked by hash. Torchvision's Inception-v3 is
another network.
"""

from pathlib import Path

import torch
from torch import Tensor

from ganbench.datasets import data_root
from ganbench.errors import UserError
from ganbench.features import FeatureExtractor, Features
from ganbench.files import sha256_of
from ganbench.images import to_rgb

FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its start is in the file's name


class InceptionV3(FeatureExtractor):
    """Inception-v3 of 2015-12-05: 2,048 features of the last pool, logits without bias over 1,008 classes.

    Images of any size are resized to 299 x 299 the way TensorFlow 1 did; float32 throughout. The published weights are
    taken from the data folder's `weights/`, or downloaded into it once; other weights can be given and are then named
    by their hash.
    """

    name = "inception-v3"
    source = "torch-fidelity, converted from TensorFlow's inception-2015-12-05"
    licence = "Apache-2.0"

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = weights or published_weights(download)
        try:
            # Read safely first: torch-fidelity itself would unpickle anything.
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"{path} is not a whole file of plain tensors, and reading more could run code: "
                f"give another --weights {self.name}=FILE."
            ) from error
        self.sha256 = sha256_of(path)
        self.official = self.sha256 == SHA256
        try:
            self.net = FeatureExtractorInceptionV3("inception-v3", ["2048", "logits_unbiased"], str(path))
        except (RuntimeError, TypeError, AttributeError) as error:
            keys = f"{len(state)} entries" if isinstance(state, dict) else type(state).__name__
            raise UserError(
                f"{path} does not hold the weights of FID's Inception-v3 (found {keys}): the published file is {FILE}."
            ) from error

    def forward(self, images: Tensor) -> Features:
        features, logits = self.net(to_rgb(images).contiguous())
        return Features(features, logits)


def published_weights(download: bool) -> Path:
    """Path of the published weights in the data folder, downloaded if that is allowed.

    Raises UserError where they are missing and cannot be had.
    """
    path = data_root() / "weights" / FILE
    if path.exists():
        return path
    what = f"the published weights of inception-v3 are not in {path.parent}"
    remedy = f"Put {FILE} there, or give --weights inception-v3=FILE."
    if not download:
        raise UserError(f"{what} and this run is offline. {remedy}")
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=SHA256)
    except Exception as error:
        raise UserError(f"{what} and could not be downloaded ({error}). {remedy}") from error
    return path
