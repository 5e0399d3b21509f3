"""Push an exported folder to the Hugging Face hub."""

from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from pipeline.common.errors import ConfigError, DownloadError
from training.export.timm_folder import FILES


def require_hub(repo: str) -> None:
    """Check before the work that a push can work: the name, the network, the login.

    Raises:
        ConfigError: If the name is none.
        DownloadError: If the hub does not answer, or does not know the user.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise _no_name(repo) from error
    if repo.count("/") != 1:
        raise _no_name(repo)
    try:
        HfApi().whoami()
    except (OSError, httpx.HTTPError) as error:
        raise _refused(repo, error) from error


def push_folder(folder: Path, repo: str) -> str:
    """Make a repository if there is none, and upload what an export wrote and nothing else.

    Returns:
        Its address.

    Raises:
        DownloadError: If the hub refuses.
    """
    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(FILES),
            commit_message="Upload a run of srp",
        )  # fmt: skip
    except (OSError, httpx.HTTPError) as error:
        raise _refused(repo, error) from error
    return f"https://huggingface.co/{repo}"


def _no_name(repo: str) -> ConfigError:
    return ConfigError(
        f"--push must be OWNER/NAME; got {repo!r}. Name the owner and the repository."
    )


def _refused(repo: str, error: Exception) -> DownloadError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DownloadError(
        f"--push needs the Hugging Face hub and a login; got {reason} for {repo}. Connect and log "
        "in with: hf auth login; or leave --push out, and upload the folder later."
    )
