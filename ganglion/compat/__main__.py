"""`python -m ganglion.compat script.py ARGS...`: runs a script as `python script.py ARGS...` would, with the stand-ins
of `ganglion.compat.mamba_ssm` in place. `-m MODULE ARGS...` runs a module."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .mamba_ssm import install
from .spawned import ENV, run_program

USAGE = "usage: python -m ganglion.compat [--replace] [--keep PACKAGE]... (SCRIPT.py | -m MODULE) [ARGS...]"


def main(argv: list[str]) -> int:
    """Run what `argv` names. Returns 2 after printing what is wrong with it."""
    replace, keep = False, []
    while argv[:1] == ["--replace"] or (argv[:1] == ["--keep"] and len(argv) > 1):
        if argv[0] == "--replace":
            replace, argv = True, argv[1:]
        else:
            keep, argv = [*keep, argv[1]], argv[2:]
    if not argv or argv[0] in ("-h", "--help") or argv == ["-m"]:
        print(USAGE, file=sys.stdout if argv[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    is_module = argv[0] == "-m"
    if not is_module and not Path(argv[0]).is_file():
        print(f"python -m ganglion.compat: error: there is no script {argv[0]}\n{USAGE}", file=sys.stderr)
        return 2
    try:
        install(replace=replace, keep=keep)
    except (ImportError, ValueError) as error:
        print(f"python -m ganglion.compat: error: {error}", file=sys.stderr)
        return 2
    program = argv[1] if is_module else str(Path(argv[0]).resolve())
    if is_module:
        sys.argv = argv[1:]
        sys.path.insert(0, "")
    else:
        sys.argv = argv
        sys.path[0] = str(Path(program).parent)
    told = {"program": program, "is_module": is_module, "replace": replace, "keep": keep}
    os.environ[ENV] = json.dumps(told)
    run_program("__main__", program, is_module)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
