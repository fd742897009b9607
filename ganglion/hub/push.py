"""`push`: a network, its description and its card, as one commit to a repository of the hub."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..models.hub_files import PREFIX, check_repo, explain
from ..models.weight_files import offline
from ..tasks.loaded_model import LoadedModel
from .card import is_ours, write_card
from .folder import CARD, write_network

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class HubError(OSError):
    """What the hub did not take, and why."""


def push(
    model: LoadedModel,
    repo: str,
    *,
    licence: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    card: str | os.PathLike[str] | bool = True,
    overwrite: bool = False,
) -> str:
    """Upload a network to the hub, in one commit: model.safetensors, config.json and its card, README.md.

    Then `ganglion.load_model("hf-hub:OWNER/NAME")` loads it, and of classifiers timm.create_model, too.

    repo: OWNER/NAME; made where it is not there.
    licence: of the weights, by the hub's identifier, such as "apache-2.0".
    private: of a repository that is made now.
    revision: a branch. message: of the commit.
    card: a file with the text of the card, True for that of `model_card`, False for none. A card that is at the hub
        already and was changed there stays.
    overwrite: leave to replace what no push of ours wrote.

    Returns the address of the commit.

    Raises ValueError for a malformed repo; CardError where nothing is known of the network's accuracy; HubError where
    the hub cannot be reached or refuses, and where GANGLION_OFFLINE is set: nothing is uploaded then.
    """
    check_repo(repo)
    if offline():
        raise HubError(f"GANGLION_OFFLINE is set: nothing is uploaded to {repo}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        write_network(model, folder)
        if isinstance(card, (str, os.PathLike)):
            (folder / CARD).write_text(Path(card).read_text(encoding="utf-8"), encoding="utf-8")
        elif card:
            write_card(model, folder / CARD, source=PREFIX + repo, licence=licence)
        try:
            return _upload(folder, repo, private, revision, message, overwrite, isinstance(card, bool))
        except HubError:
            raise
        except Exception as error:  # servers, files and proxies fail in their own ways
            raise HubError(f"cannot push to {repo}: {explain(error)}") from error


def _upload(
    folder: Path,
    repo: str,
    private: bool,
    revision: str | None,
    message: str | None,
    overwrite: bool,
    may_keep: bool,
) -> str:
    """may_keep: whether a card that somebody changed at the hub stays."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import LocalTokenNotFoundError

    if get_token() is None:
        raise LocalTokenNotFoundError
    api = HfApi(library_name="ganglion")
    api.create_repo(repo, private=private, exist_ok=True)
    there = {file for file in (CARD, _CONFIG, _WEIGHTS) if api.file_exists(repo, file, revision=revision)}
    if (
        not overwrite
        and there & {_CONFIG, _WEIGHTS}
        and not _wrote(_fetched(api, repo, _CONFIG, revision, there))
    ):
        raise HubError(
            f"{repo} holds a network that no push of ours wrote: expected another name, or --overwrite"
        )
    if CARD in there and may_keep and not overwrite:
        found = _fetched(api, repo, CARD, revision, there)
        if found is not None and not is_ours(found):
            (folder / CARD).unlink(missing_ok=True)
    done = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        revision=revision,
        commit_message=message or "Network uploaded by ganglion",
    )
    return str(done.commit_url)


def _fetched(api: Any, repo: str, file: str, revision: str | None, there: set[str]) -> Path | None:
    return Path(api.hf_hub_download(repo, file, revision=revision)) if file in there else None


def _wrote(config: Path | None) -> bool:
    try:
        return config is not None and json.loads(config.read_bytes()).get("written_by") == "ganglion fit"
    except (ValueError, AttributeError):
        return False
