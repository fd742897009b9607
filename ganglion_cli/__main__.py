"""`python -m ganglion_cli`, the command without its launcher."""

import sys

from . import main

sys.exit(main())
