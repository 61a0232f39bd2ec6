"""The examples in the docstrings of ganbench/base and ganbench/data work."""

import doctest
import importlib

import pytest

MODULES = ("base.data_spec", "base.errors", "data.images", "data.resizing", "data.datasets.folder",
           "data.sources.generators")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_a_module_work(name):
    found = doctest.testmod(importlib.import_module(f"ganbench.{name}"))
    assert found.failed == 0
    assert found.attempted > 0
