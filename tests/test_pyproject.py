"""What pyproject.toml says of the extras and the dependency groups."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))


def test_what_wants_another_cuda_is_a_conflict_for_uv():
    """Else `uv run` fails, whatever it is to install: it looks for versions for everything at once."""
    extras, groups = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    cuda = {
        (kind, name): re.search(r"cu(?:da)?(\d\d)", " ".join(wanted))
        for kind, table in (("extra", extras), ("group", groups))
        for name, wanted in table.items()
    }
    wanted = {
        frozenset({one, other})
        for one, other in itertools.combinations(filter(cuda.get, cuda), 2)
        if cuda[one][1] != cuda[other][1]
    }
    assert len(wanted) >= 2
    said = {
        frozenset(item for member in members for item in member.items())
        for members in PROJECT["tool"]["uv"]["conflicts"]
    }
    assert said == wanted
