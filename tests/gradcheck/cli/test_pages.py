"""The console blocks of the page on the command line, run."""

from __future__ import annotations

import shlex

from pages import blocks, steady

from tinygrad_bn import registry
from tinygrad_bn.registry import REGISTRY

PAGE = "check-from-the-command-line.md"


def test_the_blocks_of_the_page_are_what_is_printed(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(REGISTRY)
    monkeypatch.setattr(REGISTRY, "_specs", dict(REGISTRY._specs))
    (tmp_path / "my_norm.py").write_text(blocks(PAGE, "python")[0])
    (tmp_path / "scale_norm.py").write_text(blocks("declare-an-operation.md", "python")[0])
    (tmp_path / "my_broken.py").write_text("import not_there\n")
    compared = 0
    for block in blocks(PAGE, "console"):
        command, _, shown = block.partition("\n")
        if not shown:
            continue
        result = run(*shlex.split(command)[3:])
        printed = (result.stdout or result.stderr).replace(str(tmp_path), "/home/me")
        assert steady(printed) == steady(shown)
        compared += 1
    assert compared == 3
    registry._resolve.cache_clear()
