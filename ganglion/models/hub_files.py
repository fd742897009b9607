"""Files of networks at Hugging Face's hub: `hf-hub:OWNER/NAME`, with `@REVISION` if it is not the newest."""

from __future__ import annotations

from pathlib import Path

from .weight_files import CheckpointError, offline

PREFIX = "hf-hub:"


def hub_folder(source: str) -> Path:
    """The folder, in the hub's cache, with config.json and the weights of a network; downloaded where they are not.

    source: `hf-hub:OWNER/NAME` or `hf-hub:OWNER/NAME@REVISION`.

    Raises ValueError for another form; CheckpointError for a repository or file that does not exist, without a
    network, and, where GANGLION_OFFLINE is set, for what is not in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, revision = source.removeprefix(PREFIX).partition("@")
    check_repo(repo)

    def fetch(file: str) -> Path:
        return Path(
            hf_hub_download(
                repo, file, revision=revision or None, library_name="ganglion", local_files_only=offline()
            )
        )

    try:
        folder = fetch("config.json").parent
        try:
            fetch("model.safetensors")
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:  # of networks that others have uploaded
            fetch("pytorch_model.bin")
    except LocalEntryNotFoundError as error:
        if offline():
            raise CheckpointError(f"GANGLION_OFFLINE is set: {source!r} is not in the hub's cache") from error
        raise CheckpointError(f"cannot load {source!r}: {explain(error)}") from error
    except Exception as error:  # servers, files and proxies fail in their own ways
        raise CheckpointError(f"cannot load {source!r}: {explain(error)}") from error
    return folder


def check_repo(repo: str) -> None:
    """Raise ValueError, saying what is wrong, unless `repo` may be the name of a repository with its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{repo!r} is no repository: {said}. Expected OWNER/NAME") from error
    if repo.count("/") != 1:
        raise ValueError(f"{repo!r} is no repository: expected OWNER/NAME")


def explain(error: BaseException) -> str:
    """What a failure of the hub means, in a line, and what to do about it."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled)) or _is_connection(error):
        return f"{constants.ENDPOINT} cannot be reached, and it is not in the cache"
    if isinstance(error, hub.LocalTokenNotFoundError):
        return "there is no token: `hf auth login`, or set HF_TOKEN"
    if isinstance(error, hub.GatedRepoError):
        return "its owner lets in only whom they know: ask there for access"
    if isinstance(error, hub.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, hub.EntryNotFoundError):
        return "the repository has no config.json with model.safetensors: no network that can be loaded here"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub.RepositoryNotFoundError) and status != 401:
        return "there is no such repository, or it is private and the token is not its owner's"
    if status == 401:
        return "there is no such repository, or it wants a token: `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "the token has no leave to write there"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _is_connection(error: BaseException | None) -> bool:
    """Whether there was no answer at all."""
    while error is not None:
        if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError"):
            return True
        error = error.__cause__
    return False
