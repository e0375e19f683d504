"""Pushes an exported folder to a Hugging Face hub repository in one commit, by its library."""

from pathlib import Path
from typing import Any

from emo_jax.errors import EmoError, HfFormatError, UsageError, one_line
from emo_jax.hf import tokenizer_files
from emo_jax.hf.export import FILES
from emo_jax.hf.importing import open_folder
from emo_jax.hf.named_code import code_in
from emo_jax.hf.weights import INDEX, SINGLE, weight_files

# In the repository's top folder only: what is below it (adapters, other formats) is not replaced.
_WEIGHTS = [SINGLE, "model-?????-of-?????.safetensors", INDEX]


def check_repo(repo: str) -> None:
    """Checks before long work that a push can succeed.

    Raises:
      UsageError: not a repository name, or the library is not installed.
    """
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError:
        raise UsageError(
            f"--push {repo}: needs the package huggingface_hub; pip install 'emo-jax[hub]'"
        ) from None
    try:
        validate_repo_id(repo)
    except HFValidationError as e:
        raise UsageError(f"--push {repo}: {one_line(e)}") from None
    if repo.count("/") != 1:
        raise UsageError(f"--push {repo}: must be ORG/NAME, a user or organization and a name")


def push_folder(folder: str | Path, repo: str, *, private: bool = True) -> str:
    """Uploads a whole folder as one commit, so that the repository never has half a model.

    Weights of an earlier push that are not part of this one are deleted in the same commit: a
    loader would take them for the model. Everything else in the repository is kept. The token is
    that of huggingface_hub (`hf auth login`, HF_TOKEN).

    Args:
      folder: folder made by an export; other files in it are not uploaded.
      repo: ORG/NAME; created if it does not exist.
      private: visibility of a repository that is created.

    Returns:
      The URL of the repository.

    Raises:
      HfFormatError: the folder is not a whole model, or names code.
      EmoError: the hub refuses or cannot be reached; the folder is unchanged.
    """
    folder = Path(folder)
    check_repo(repo)
    open_folder(folder)  # rejects links out of the folder: their targets would be uploaded too
    for name, fields in code_in(folder).items():
        raise HfFormatError(
            f"{folder / name}: names code ({', '.join(fields)}), which whoever loads the repository"
            f" would be asked to run, and which no model of ours needs; take {fields[0]} out of the"
            " file, or export the model anew"
        )
    import huggingface_hub

    files = [path.name for path in weight_files(folder)]
    files += [*FILES, *tokenizer_files.FILES]
    try:
        api: Any = huggingface_hub.HfApi()
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=files,
            delete_patterns=_WEIGHTS,
            commit_message="Export of emo_jax",
        )
    except Exception as e:  # from the library, HTTP, the network or the disk
        public = "" if private else " --public"
        raise EmoError(
            f"{folder}: not pushed to {repo}: {_reason(e)}; the folder is kept: mend that and run"
            f" emo export {folder} --push {repo}{public}"
        ) from e
    return str(url)


def _reason(error: Exception) -> str:
    if getattr(getattr(error, "response", None), "status_code", 0) == 401:
        return "the hub knows no such user; log in with hf auth login, or set HF_TOKEN"
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    return f"{type(cause).__name__}: {one_line(cause)}"
