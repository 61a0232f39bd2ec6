"""A model, a metric, an extractor, a data set and a recipe for ganbench."""

from pathlib import Path

# Each TOML file in this folder is a recipe. `ganbench list` imports this file: import nothing slow here.
RECIPES = Path(__file__).parent / "recipes"
