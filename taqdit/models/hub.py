"""Files of Hugging Face repositories: the cache first, then a download, then a clear line."""

from __future__ import annotations

from pathlib import Path

from taqdit.errors import ModelError

TEXT_REPO, T5_REPO = "argmaxinc/stable-diffusion", "google/t5-v1_1-xxl"


def locate(repo: str, file: str) -> Path | None:
    """The file in the local cache, or None. No network, no error."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file)
    return Path(path) if isinstance(path, str) and Path(path).is_file() else None


def fetch(repo: str, file: str) -> Path:
    """The file, downloaded when the cache lacks it (and HF_HUB_OFFLINE is not set).

    Raises ModelError.
    """
    if cached := locate(repo, file):
        return cached
    import huggingface_hub
    from huggingface_hub import errors

    interrupted = getattr(errors, "XetDownloadError", OSError), errors.HTTPError, RuntimeError
    try:
        return Path(huggingface_hub.hf_hub_download(repo, file))
    except errors.GatedRepoError as error:
        raise problem(repo, file, "is behind a licence that you have not accepted") from error
    except errors.RepositoryNotFoundError as error:
        raise problem(repo, file, "is in a repository that you cannot see") from error
    except errors.RemoteEntryNotFoundError as error:
        raise problem(repo, file, "is not in the repository any more") from error
    except (OSError, *interrupted) as error:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise problem(repo, file, "is not here, and HF_HUB_OFFLINE is set") from error
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        raise problem(repo, file, f"is not here and cannot be downloaded ({reason})") from error


def problem(repo: str, file: str, what: str, *, local: Path | None = None) -> ModelError:
    """The error for a file that cannot be used: `what` is wrong, and how to get a good one."""
    checkpoint = file.startswith("sd3")
    own = "; or give a file of your own with model.local_ckpt=PATH" if checkpoint else ""
    return ModelError(
        f"{local or file} of {repo} {what}; to get the released file, accept the licence at"
        f" https://huggingface.co/{repo} if it asks, run `hf auth login` (older tools:"
        f" `huggingface-cli login`), then `hf download --force-download {repo} {file}`{own}"
    )
