"""The contract that a reference model fulfils, and its checkpoints."""

from ganbench.gan.contract import CAPABILITIES, GAN, Batch, capabilities, minimize, minimize_together

__all__ = ["CAPABILITIES", "GAN", "Batch", "capabilities", "minimize", "minimize_together"]
