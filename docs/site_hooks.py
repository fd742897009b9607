"""What the site does with notebooks: a page each; and with links to files of the repository that are no pages: their
paths, as text."""

import json
import re
from pathlib import Path

from mkdocs.structure.files import File


def on_files(files, config):
    for path in sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=_as_page(path)))
    return files


def _as_page(path):
    """Text as it is, code in blocks; what it prints is seen where it is run."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.append(f"This page is the notebook `docs/notebooks/{path.name}`.")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown, **_):
    return re.sub(r"\[([^\]]+)\]\((?:\.\./([^)\s]+)|(measurements)/?)\)", _as_text, markdown)


def _as_text(link):
    text, path = link[1].strip("`"), link[2] or f"docs/{link[3]}"
    return f"`{path}`" if text in path else f"{link[1]} (`{path}`)"
