"""One page that shows what a network's scans do with an image: `ganglion explore`.

The page is a single HTML file that makes no request. It holds what every scan is given, and computes each map in the
browser, so that any pixel of any layer can be asked.
"""

from .page import is_page, make_page, page_of
from .record import explore

__all__ = ["explore", "is_page", "make_page", "page_of"]
