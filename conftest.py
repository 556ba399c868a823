"""The examples in docstrings, in README.md and in docs/ are tests."""

from doctest import ELLIPSIS

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

pages = Sybil([PythonCodeBlockParser(doctest_optionflags=ELLIPSIS), SkipParser()], pattern="*.md")
docstrings = [
    Sybil([DocTestParser(ELLIPSIS)], pattern="*.py", path=package) for package in ("gradcheck", "tinygrad_bn")
]

pytest_plugins = ["pytester"]  # for the tests of the pytest plugin
pytest_collect_file = SybilCollection([pages, *docstrings]).pytest()
