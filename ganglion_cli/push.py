"""Upload a network to Hugging Face's hub, with a card that says what it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import fail, open_source, print_json
from .options import say_loading

_EXAMPLES = """\
examples:
  ganglion push runs/one/model me/flowers --license apache-2.0
  ganglion push runs/one/checkpoints/best.ckpt me/flowers --private
  ganglion push runs/one/model me/flowers --card my_card.md

SOURCE is an exported folder, a training checkpoint, a name (its published weights), or NAME=FILE for a published file.
Then `ganglion validate --model hf-hub:me/flowers`, ganglion.load_model("hf-hub:me/flowers") and, of classifiers,
timm.create_model("hf-hub:me/flowers", pretrained=True) load it. The token is that of `hf auth login`, or HF_TOKEN.
exit status: 0; 1 if it cannot be loaded or the hub does not take it; 2 for arguments that make no sense
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="a network")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME; made where it is not there")
    parser.add_argument(
        "--license", metavar="ID", help="of the weights, in the hub's words: apache-2.0, mit, ..."
    )
    parser.add_argument("--private", action="store_true", help="make a repository that only its owner sees")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch that is there (main)")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    cards = parser.add_mutually_exclusive_group()
    cards.add_argument("--card", type=Path, metavar="FILE", help="a card of your own")
    cards.add_argument("--without-card", action="store_true", help="upload none")
    parser.add_argument(
        "--task", metavar="FOLDER", help="a task of your own that SOURCE is of; its code runs"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is there and no push of ours wrote"
    )
    parser.add_argument("--json", action="store_true", help="print the addresses as JSON")
    parser.set_defaults(untrained=False)


def run(args: argparse.Namespace) -> int:
    say_loading("PyTorch and timm")
    from ganglion.hub import CardError, HubError, push
    from ganglion.models.hub_files import check_repo
    from ganglion.training.errors import TrainingError

    try:
        check_repo(args.repo)
    except ValueError as error:
        args.parser.error(str(error))
    loaded = open_source(args, args.source)
    try:
        commit = push(
            loaded,
            args.repo,
            licence=args.license,
            private=args.private,
            revision=args.revision,
            message=args.message,
            card=False if args.without_card else args.card or True,
            overwrite=args.overwrite,
        )
    except CardError as error:
        fail(args, f"{error}, --card FILE, or --without-card")
    except (HubError, TrainingError, OSError, UnicodeDecodeError) as error:
        fail(args, error)
    if args.json:
        print_json({"repo": args.repo, "commit": commit, "source": f"hf-hub:{args.repo}"})
    else:
        print(f'uploaded: {commit}\nto load it: ganglion.load_model("hf-hub:{args.repo}")')
    return 0
