"""Builds the site of the documents, without network; a broken link fails.

Usage: python .ci/site.py [--pages-only]

The pages are gathered in build/site_pages under the paths that they have in the repository, so that links between them
stay valid; README.md becomes the start page.  Other files that pages link to (configurations, code) are copied.  Three
pages are generated: configuration, command line, cards.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from reference_pages import cards_page, commands_page, configuration_page

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "site_pages"
START = "README.md"
# A Markdown link or image whose address is a path; the address may have an anchor.
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def page_sources() -> list[Path]:
    """Every document of the repository."""
    pages = [ROOT / START, *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    pages += [ROOT / "config" / "README.md", *sorted((ROOT / "data").rglob("*.md"))]
    pages += sorted((ROOT / "rm_methods" / "data").rglob("*.md"))
    pages += sorted((ROOT / "performance").glob("*.md"))
    return list(dict.fromkeys(page for page in pages if page.exists()))


def gather(pages: Path = PAGES) -> list[str]:
    """Write all pages below `pages`; the links that lead nowhere, one text each."""
    shutil.rmtree(pages, ignore_errors=True)
    sources = page_sources()
    broken = []
    for source in sources:
        text = source.read_text(encoding="utf-8")
        for linked in linked_files(source, text):
            if not linked.exists():
                broken.append(f"{source.relative_to(ROOT)}: no file {linked.relative_to(ROOT)}")
            elif linked.is_file() and linked not in sources:
                target = pages / linked.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(linked, target)
        _write_page(pages / site_path(source), with_site_links(source, text))
    generated = {"configuration": configuration_page(), "commands": commands_page(), "cards": cards_page()}
    for name, page in generated.items():
        _write_page(pages / "reference" / f"{name}.md", page)
    return broken


def _write_page(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def site_path(source: Path) -> Path:
    """The path of a document on the site."""
    return Path("index.md") if source == ROOT / START else source.relative_to(ROOT)


def linked_files(source: Path, text: str) -> Iterator[Path]:
    """Files of the repository that a page links to."""
    for _, address, _ in LINK.findall(without_code(text)):
        target = (source.parent / address).resolve()
        if ROOT in target.parents:
            yield target


def with_site_links(source: Path, text: str) -> str:
    """The page with links to the start page, and to folders, as the site has them."""

    def replaced(match: re.Match) -> str:
        target = (source.parent / match.group(2)).resolve()
        if target == ROOT / START:
            up = "../" * (len(source.relative_to(ROOT).parts) - 1)
            return f"{match.group(1)}{up}index.md{match.group(3)}"
        if (target / "README.md").exists():
            return f"{match.group(1)}{match.group(2).rstrip('/')}/README.md{match.group(3)}"
        return match.group(0)

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(replaced, part) for part in parts)


def without_code(text: str) -> str:
    """The text without blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def main() -> int:
    """Gather and build; the exit status."""
    broken = gather()
    if broken:
        print("\n".join(broken), file=sys.stderr)
        return 1
    if "--pages-only" in sys.argv:
        return 0
    # Not --quiet: it hides warnings from --strict, too.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = ["mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        print("\n".join(line for line in done.stderr.splitlines() if not line.startswith("INFO")), file=sys.stderr)
    else:
        print(f"The site is in {(ROOT / 'build' / 'site').relative_to(ROOT)}/index.html")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
