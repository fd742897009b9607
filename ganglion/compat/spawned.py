"""What a process runs first that a program under `python -m ganglion.compat` has spawned (`multiprocessing`, workers of
a DataLoader): the stand-ins, then the program's own definitions, as `multiprocessing` would import them."""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ganglion.compat.mamba_ssm import install

#: What the program is and how the stand-ins were put in place, for the processes that it spawns.
ENV = "GANGLION_COMPAT_PROGRAM"


def run_program(name: str, program: str, is_module: bool) -> ModuleType:
    """Run a script or a module as the module `name`, and return it.

    Its spec names this file's module, which is what `multiprocessing` has spawned processes run before all else.
    """
    main = ModuleType(name)
    if is_module:
        spec = find_spec(program)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = find_spec(f"{program}.__main__")
        loader: Any = None if spec is None else spec.loader
        code = None if spec is None else loader.get_code(spec.name)
        if spec is None or code is None:
            raise ImportError(f"no module named {program} that can be run")
        main.__file__, main.__package__ = spec.origin, spec.parent
    else:
        path = str(Path(program).resolve())
        code = compile(Path(path).read_bytes(), path, "exec")
        main.__file__ = path
    main.__spec__ = ModuleSpec("ganglion.compat.spawned", None)
    sys.modules[name] = main
    exec(code, main.__dict__)
    return main


if __name__ == "__mp_main__":
    told: dict[str, Any] = json.loads(os.environ[ENV])
    install(replace=told["replace"], keep=told["keep"])
    globals().update(vars(run_program("__mp_main__", told["program"], told["is_module"])))
