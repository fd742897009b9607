"""`python -m ganglion.cli`, the command without its launcher."""

import sys

from . import main

sys.exit(main())
