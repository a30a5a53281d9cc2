"""push: a codec's folder to a repository on the Hub, checked before anything is sent."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from .cards import CARD_NAME

WEIGHTS_NAME = "model.safetensors"
NEEDED_FILES = ("config.json", "preprocessor_config.json", WEIGHTS_NAME, CARD_NAME)


@dataclass(frozen=True)
class Push:
    """Bytes by path of the files that were uploaded, or would be, and the commit's URL, `None` after a dry run."""

    files: dict[str, int]
    commit_url: str | None


def push(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Upload a codec's folder to a model repository on the Hub, in one commit.

    Args:
        folder: as `convert_checkpoint` or training writes it, with a card. Hidden files are left out.
        repo_id: "user/name"; made if it doesn't exist. Files there that the folder lacks are kept.
        private: whether a new repository is private; one that exists has to be so already.
        revision: branch, made if it doesn't exist; the main one if `None`.
        dry_run: check the folder and send nothing.

    Raises:
        FileNotFoundError: no folder, or one that lacks a file.
        ValueError: weights that can't be read or don't fit the configuration, a card without licence, an id that is not
            "user/name" or is a data set's or space's, a public repository where `private` is wanted.
        PermissionError: no token, or one that may not write there.
        ConnectionError: no network, or the Hub's own failure.
    """
    folder = Path(folder)
    _check_repo_id(repo_id)
    _check_folder(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    files = {
        name: path.stat().st_size
        for name, path in zip(names, paths)
        if not any(part.startswith(".") for part in name.split("/"))
    }
    return Push(files, None if dry_run else _upload(folder, list(files), repo_id, private, revision))


def _check_repo_id(repo_id: str):
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        valid = repo_id.count("/") == 1
    if not valid:
        raise ValueError(f"{repo_id!r} is no id of a model repository: user/name is wanted")


def _check_folder(folder: Path):
    """Raise unless `folder` holds a codec that loads, and a card that names a licence."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: that of a converted or trained codec is wanted")
    missing = [name for name in NEEDED_FILES if not (folder / name).is_file()]
    if missing:
        hint = f": `fsqcodec card {folder} --output {folder / CARD_NAME}` writes it" if missing == [CARD_NAME] else ""
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}{hint}")
    config = AutoConfig.from_pretrained(folder)
    sampling_rate = AutoFeatureExtractor.from_pretrained(folder).sampling_rate
    if sampling_rate != config.input_sampling_rate:
        raise ValueError(
            f"{folder}: preprocessor_config.json says {sampling_rate} Hz, config.json {config.input_sampling_rate} Hz"
        )
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in AutoModel.from_config(config).state_dict().items()}
    try:
        with safe_open(folder / WEIGHTS_NAME, framework="pt") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_NAME} can't be read, truncated or damaged: {error}") from error
    if differing := sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)):
        raise ValueError(
            f"{folder / WEIGHTS_NAME} does not fit config.json: {len(differing)} tensors are missing, unknown or of "
            f"another shape, {differing[0]} among them"
        )
    if not ModelCard.load(folder / CARD_NAME).data.license:
        raise ValueError(
            f"{folder / CARD_NAME} names no licence: add a line like `license: mit` at its top, between the lines `---`"
        )


def _upload(folder: Path, names: list[str], repo_id: str, private: bool, revision: str | None) -> str:
    """The URL of the commit."""
    if get_token() is None:
        raise PermissionError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        _prepare_repository(api, repo_id, private)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
        message = f"Upload {folder.resolve().name}"
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        if error.response.status_code in (401, 403):
            raise PermissionError(
                f"the Hub does not let this token write to {repo_id}: {reason}. `hf auth whoami` shows whose it is"
            ) from error
        raise ConnectionError(f"the Hub refused the upload to {repo_id}: {reason}") from error
    except (HTTPError, ConnectionError) as error:
        raise ConnectionError(f"the Hub at {api.endpoint} can't be reached, nothing was uploaded: {error}") from error


def _prepare_repository(api: HfApi, repo_id: str, private: bool):
    try:
        exists_publicly = not api.model_info(repo_id).private
    except RepositoryNotFoundError:
        for repo_type in ("dataset", "space"):
            if api.repo_exists(repo_id, repo_type=repo_type):
                raise ValueError(f"{repo_id} is a {repo_type} on the Hub: choose another name for the model") from None
        api.create_repo(repo_id, private=private, exist_ok=True)
        return
    if private and exists_publicly:
        raise ValueError(f"{repo_id} exists and is public: make it private on the Hub, or choose another name")
