"""The examples in the docstrings of ganbench.metrics and in its pages run; every public function has one."""

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re

import pytest
from support import ROOT

import ganbench.metrics

MODULES = ["ganbench.metrics", *(m.name for m in pkgutil.iter_modules(ganbench.metrics.__path__, "ganbench.metrics."))]
PUBLIC = [getattr(ganbench.metrics, name) for name in ganbench.metrics.__all__]
FUNCTIONS = [thing for thing in PUBLIC if inspect.isfunction(thing)]


def examples(thing):
    """Return all doctest examples of an object and of its members."""
    return [example for test in doctest.DocTestFinder(exclude_empty=False).find(thing) for example in test.examples]


def run(thing):
    """Run the doctests of a module or function: (number of failures, report)."""
    runner, report = doctest.DocTestRunner(verbose=False), []
    for test in doctest.DocTestFinder().find(thing):
        runner.run(test, out=report.append)
    return runner.failures, "".join(report)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_the_printed_values(name):
    failures, report = run(importlib.import_module(name))
    assert failures == 0, report


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_public_function_has_an_example_that_shows_a_value(function):
    found = examples(function)
    assert any(example.want for example in found), f"{function.__name__} has no doctest example"
    assert any(function.__name__ + "(" in example.source for example in found)


def test_the_functions_are_found():
    assert len(FUNCTIONS) >= 40
    assert ganbench.metrics.frechet_distance in FUNCTIONS


def test_a_wrong_value_and_a_missing_example_are_detected():
    def wrong():
        """Return one.

        >>> 1
        2
        """

    def without():
        """Return one."""

    failures, report = run(wrong)
    assert failures == 1
    assert "Expected" in report
    assert examples(wrong)
    assert not examples(without)


@pytest.mark.parametrize("page", ["metrics", "footguns"])
def test_a_page_begins_with_an_example_that_prints_the_shown_values(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks[:2]] == ["python", ""]
    names, shown = {}, []
    for language, code in blocks:
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            shown.append(out.getvalue())
    assert shown[0] == blocks[1][1]
