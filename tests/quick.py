"""Which of many parameters the default suite takes; the others bear the mark ``slow``."""

import pytest


def one_in(every, values):
    """The first of ``values`` and then one in ``every``; all of them are in the whole suite."""
    return [value if number % every == 0 else slowly(value) for number, value in enumerate(values)]


def first_of(*values):
    """The first alone."""
    return one_in(len(values), values)


def slowly(value):
    """One of several arguments is a tuple of them."""
    return pytest.param(*value if isinstance(value, tuple) else (value,), marks=pytest.mark.slow)
