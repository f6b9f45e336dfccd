"""Fails on every lint of `snakemake --lint` except missing containers: one environment serves all rules.

Usage: python .ci/lint_workflow.py
"""

from __future__ import annotations

import re
import subprocess
import sys

EXPECTED = "Specify a conda environment or container for each rule."


def lints() -> list[str]:
    """The lints of `snakemake --lint`: each with its title and its file or rule."""
    done = subprocess.run(["snakemake", "--lint"], capture_output=True, text=True)
    output = done.stdout + done.stderr
    where = ""
    titles = []
    for line in output.splitlines():
        if line.startswith("Lints for "):
            where = line.removeprefix("Lints for ").rstrip(":")
        elif title := re.match(r"    \* (.*?):?$", line):
            titles.append(f"{where}: {title.group(1)}")
    if done.returncode and not titles:
        titles.append(output)
    return titles


if __name__ == "__main__":
    unexpected = [title for title in lints() if EXPECTED not in title]
    print("\n".join(unexpected), end="\n" if unexpected else "", file=sys.stderr)
    sys.exit(1 if unexpected else 0)
