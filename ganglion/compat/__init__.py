"""Stand-ins for packages that other projects import and many of their users cannot build.

`ganglion.compat.mamba_ssm.install()` puts them in place; `python -m ganglion.compat script.py ARGS...` runs a script
with them, untouched.
"""

from . import mamba_ssm

__all__ = ["mamba_ssm"]
