"""`python -m ganglion VERB`, the command without its launcher, as torchrun wants it."""

import sys

from ganglion_cli import main

sys.exit(main())
