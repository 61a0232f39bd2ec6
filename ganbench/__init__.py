"""ganbench: evaluate and reproduce generative image models.

Importing this package imports nothing heavy; torch is loaded by the modules that need it.
"""

__version__ = "0.1.0"
