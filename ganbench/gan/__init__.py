"""The contract that a reference model fulfils, and its checkpoints.

contract.py    GAN (base class), Batch, Code, LatentSpace, Stage, minimize, capabilities: with `transition_matrix` of
               label noise, all that a model imports from ganbench
checkpoint.py  weights and model name in one file: save, load, and models by name
"""

from ganbench.base.label_noise import transition_matrix
from ganbench.gan.contract import (
    CAPABILITIES,
    GAN,
    Batch,
    Code,
    LatentSpace,
    Stage,
    capabilities,
    minimize,
    minimize_together,
)

__all__ = [
    "CAPABILITIES", "GAN", "Batch", "Code", "LatentSpace", "Stage", "capabilities", "minimize", "minimize_together",
    "transition_matrix",
]
