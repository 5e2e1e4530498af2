"""Upload checkpoints to the hub; `load("hf://owner/name")` reads them. Needs the extra `hub`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from elasticnet.checkpoint.header import Description, read_header, read_sizes
from elasticnet.checkpoint.hub_card import CardOptions, Scores, config_json, model_card
from elasticnet.checkpoint.saving import save
from elasticnet.checkpoint.sources import DEFAULT_FILE, check_hub_library

README = "README.md"
CONFIG = "config.json"


def push_to_hub(
    net_or_file: nn.Module | str | os.PathLike[str],
    repo: str,
    *,
    file: str = DEFAULT_FILE,
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    token: str | bool | None = None,
    license: str | None = None,
    pipeline_tag: str | None = None,
    picture: str | os.PathLike[str] | None = None,
    scores: Iterable[Scores] | None = None,
) -> str:
    """Upload a net, or a file that `save` wrote, to the hub.

    The file is checked before anything is sent. Notes and cards are a part of the file. Beside it
    goes config.json, which describes it for programs of the hub. If the repository has no
    README.md, one is added: the model card, with code that loads the file, a table of the depths,
    and the scores of every depth where the hub reads them (model-index).

    Args:
        net_or_file: The net, as `save` takes it, or the path of the file.
        repo: The repository as "owner/name". It is created if it does not exist.
        file: The file's name in the repository; it must end in .safetensors.
        revision: A branch, which is created if it does not exist. Default: main.
        private: Whether a repository that is created here is private. None: the hub's default.
        message: The commit's message. Default: the architecture and the depths.
        token: The user's token. Default: the one stored at login.
        license: Of the weights, as the hub calls it, such as "apache-2.0", for the card.
        pipeline_tag: The task, as the hub calls it, for the card. Default: what the architecture
            says, if it says one.
        picture: A picture file, which is uploaded and stands at the top of the card.
        scores: What the depths are worth, for the card. Default: what the file holds, in depth
            cards and notes.

    Returns:
        The hf:// name of exactly this version.

    Raises:
        ValueError: `file` does not end in .safetensors, or `net_or_file` is not a valid checkpoint.
        FileNotFoundError: There is no such picture.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    check_hub_library()
    if not file.endswith(".safetensors"):
        raise ValueError(f"file {file!r}: expected a name that ends in .safetensors")
    picture_path = _existing(picture)
    options = CardOptions(
        license=license,
        pipeline_tag=pipeline_tag,
        picture=None if picture_path is None else picture_path.name,
        scores=None if scores is None else tuple(scores),
    )
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory() as folder:
        path = _file_of(net_or_file, folder)
        description = read_header(path)
        api = HfApi(token=token, library_name="elasticnet")
        # The hub answers with the full name: it adds the user's name to one without an owner.
        repo_id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        contents: dict[str, bytes | Path] = {file: path}
        # Of several files in a repository, config.json describes the one with the default name.
        if file == DEFAULT_FILE or not api.file_exists(repo_id, CONFIG, revision=revision):
            contents[CONFIG] = config_json(description, file).encode()
        if not api.file_exists(repo_id, README, revision=revision):
            card = model_card(description, read_sizes(path), repo_id, file, options)
            contents[README] = card.encode()
        if picture_path is not None:
            contents[picture_path.name] = picture_path
        commit = api.create_commit(
            repo_id,
            [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
                for name, content in contents.items()
            ],
            commit_message=message or _message(description),
            revision=revision,
        )
    return f"hf://{repo_id}@{commit.oid}/{file}"


def _file_of(net_or_file: nn.Module | str | os.PathLike[str], folder: str) -> Path:
    """The file that was given, or one that a net is saved to, in the folder."""
    if isinstance(net_or_file, (str, os.PathLike)):
        return Path(net_or_file)
    path = Path(folder, DEFAULT_FILE)
    save(net_or_file, path)
    return path


def _existing(picture: str | os.PathLike[str] | None) -> Path | None:
    """The picture's path; None without one."""
    if picture is None:
        return None
    if not Path(picture).is_file():
        raise FileNotFoundError(f"picture {os.fspath(picture)}: no such file")
    return Path(picture)


def _message(description: Description) -> str:
    """The commit's message: the architecture and the depths."""
    name = description["architecture"] or "Custom network"
    depths = ", ".join(str(tap) for tap in description["taps"])
    return f"{name}, depths {depths}"
