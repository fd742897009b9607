"""What the command does before it does anything."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import types

import pytest
import torch

import ganglion
from ganglion_cli import VERBS, main

SLOW = ("torch", "torchvision", "timm", "lightning", "matplotlib", "numpy", "ganglion")


def python(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["fit", "--help"], 0),
        (["fit"], 2),
        (["fit", "--optimizer.learning_rate", "1"], 2),
        (["fit", "--config", "there/is/no/recipe.yaml"], 2),
        (["predict", "--help"], 0),
        (["validate", "--help"], 0),
        (["info", "--help"], 0),
        (["backends", "--help"], 0),
        (["doctor", "--help"], 0),
        (["explore", "--help"], 0),
        (["explore", "model", "--image", "there/is/no/picture.jpg", "-o", "page.html"], 2),
        (["predict", "a.jpg", "--top-k", "0"], 2),
        (["predict", "there/is/no/picture.jpg", "--checkpoint", "model"], 2),
        (["validate", "--data", "images"], 2),
        (["info"], 2),
        (["prdict"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_errors_in_arguments_come_without_the_libraries(argv, status):
    code = f"""
import sys
from ganglion_cli import main
try:
    sys.exit(main({argv!r}))
except SystemExit as stop:
    loaded = [name for name in {SLOW!r} if name in sys.modules]
    print(*loaded, file=sys.stderr)
    print("stopped", stop.code)
"""
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == f"stopped {status}", done.stderr
    assert done.stderr.splitlines()[-1] == "", f"imported: {done.stderr}"


@pytest.mark.parametrize("verb", [name for name in VERBS if name != "fit"])
def test_help_takes_less_than_half_a_second_of_processor_time(verb):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert python("-m", "ganglion_cli", verb, "--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert list(VERBS) == [
        "fit",
        "validate",
        "predict",
        "info",
        "list",
        "draw",
        "explore",
        "export",
        "push",
        "bench",
        "backends",
        "doctor",
    ]
    for name, module in VERBS.items():
        assert f"    {name} " in out
        assert module.__doc__.split()[0] in out


@pytest.mark.parametrize(
    "argv", [["--resume"], ["--model.name=x", "--data.root", "y", "--trainer.max_steps", "-1"]]
)
def test_fit_gets_its_arguments_as_they_are(monkeypatch, argv):
    seen = []
    fit = types.ModuleType("ganglion.tasks.fit")
    fit.main = lambda argv, finish: seen.append(argv) or 7
    monkeypatch.setitem(sys.modules, "ganglion.tasks.fit", fit)
    assert main(["fit", *argv]) == 7
    assert seen == [argv]


def test_version():
    done = python("-m", "ganglion_cli", "--version")
    assert done.stdout.startswith(f"ganglion {ganglion.__version__}, torch {torch.__version__.split('+')[0]}")


def test_fit_says_what_it_loads():
    code = (
        "import sys; from ganglion_cli.options import say_loading as say; say('it'); import torch; say('it')"
    )
    assert python("-c", code).stderr == "loading it ...\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["prdict"], "Did you mean predict?"),
        (
            ["predict", "a.jpg", "--chekpoint", "b"],
            "there is no option --chekpoint. Did you mean --checkpoint?",
        ),
        (["predict", "a.jpg", "--check", "b"], "there is no option --check"),  # nothing is guessed
        (["info", "x", "--imgsize", "3"], "Did you mean --img-size?"),
        (["backends", "extra"], "unexpected 'extra'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_name_the_right_ones(argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["lightning", "jsonargparse"])
def test_fit_says_what_is_not_installed(name):
    code = f"import sys; sys.modules[{name!r}] = None; from ganglion_cli import main; sys.exit(main(['fit']))"
    done = python("-c", code)
    assert done.returncode == 2
    assert done.stderr == f"ganglion fit: error: {name} not installed: pip install 'ganglion[train]'\n"


@pytest.mark.parametrize(
    ("given", "policy"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "9"}, None)],
    ids=str,
)
def test_threads_do_not_spin_unless_asked_to(given, policy):
    code = "import os; from ganglion_cli import main; main(['backends']); print(os.environ.get('OMP_WAIT_POLICY'))"
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert done.stdout.splitlines()[-1] == str(policy), done.stderr


@pytest.mark.parametrize("package", ["ganglion", "ganglion_cli"])
def test_as_a_module(package):
    done = python("-m", package, "backends")
    assert done.returncode == 0 and "torch    available" in done.stdout
    done = python("-m", package, "predict")
    assert done.returncode == 2 and "ganglion predict: error: the following arguments" in done.stderr


def test_a_reader_that_has_seen_enough():
    """`ganglion backends | true`: what is written when the interpreter ends counts too."""
    argv = [sys.executable, "-m", "ganglion_cli", "backends"]
    env = os.environ | {"PYTHONUNBUFFERED": ""}
    command = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    command.stdout.close()
    assert (command.stderr.read(), command.wait(timeout=120)) == ("loading PyTorch ...\n", 0)
