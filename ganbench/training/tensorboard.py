"""A TensorBoard log beside the run's own log, if TensorBoard is installed."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ganbench.base.errors import UserError


class Board:
    """Writes scalars and pictures of a run; does nothing without a folder.

    step: where a resumed run begins; what was written after it is discarded. Raises UserError if the package
    tensorboard is not installed.
    """

    def __init__(self, folder: Path | None = None, step: int = 0):
        self.writer: Any = None
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError(
                    "--tensorboard needs the package 'tensorboard': pip install 'ganbench[tensorboard]'."
                ) from error
            self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Add a picture, uint8 C x H x W."""
        if self.writer is not None:
            self.writer.add_image(name, image, step)

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()
