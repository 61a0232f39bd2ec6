"""Reproduction: a recipe is trained, evaluated and stored, here or as jobs of a scheduler."""
