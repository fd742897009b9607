"""What the site does with links to files of the repository that are no pages: their paths, as text."""

import re


def on_page_markdown(markdown, **_):
    return re.sub(r"\[([^\]]+)\]\((?:\.\./([^)\s]+)|(measurements)/?)\)", _as_text, markdown)


def _as_text(link):
    text, path = link[1].strip("`"), link[2] or f"docs/{link[3]}"
    return f"`{path}`" if text in path else f"{link[1]} (`{path}`)"
