"""What the site has beside docs/: pages of the repository's root, and the service's own description."""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {  # page of the site -> file of the repository
    "index.md": "README.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "results.md": "benchmarks/RESULTS.md",
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, whose links lead to the site's pages where there are such."""
    for page, source in PAGES.items():
        content = LINK.sub(lambda match, source=source: _link(match[1], source), (ROOT / source).read_text())
        files.append(File.generated(config, page, content=content))
        for image in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / source).read_text()):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), image))
            if not path.startswith("docs/"):
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "reference/openapi.json", content=_openapi()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Removes the mark `no-test`, which is for tests and not for readers."""
    return re.sub(r"^(```\w+) no-test$", r"\1", markdown, flags=re.MULTILINE)


def _link(target: str, source: str) -> str:
    """A link of a file of the repository as a page of the site has it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    pages = {file: page for page, file in PAGES.items()}
    return pages.get(path) or path.removeprefix("docs/")


def _openapi() -> str:
    from gateway.app import create_app
    from gateway.settings import Settings

    return json.dumps(create_app(Settings()).openapi())
