"""A model, a metric, an extractor, a data set and a recipe for ganbench."""

from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"  # the folder of the recipes
