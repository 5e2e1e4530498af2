"""Upload checkpoints to the hub; `load("hf://owner/name")` reads them. Needs the extra `hub`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from torch import nn

from elasticnet.checkpoint.header import Description, read_header
from elasticnet.checkpoint.saving import save
from elasticnet.checkpoint.sources import DEFAULT_FILE, check_hub_library

README = """---
library_name: elasticnet
tags:
- elasticnet
---

# {title}

An elastic network: one file, runnable at depth {depths}.
Loading a depth reads only its part of the file.

```python
import elasticnet

net = elasticnet.load("hf://{repo}{file_suffix}", depth={depth}{build_argument})
```
"""


def push_to_hub(
    net_or_file: nn.Module | str | os.PathLike[str],
    repo: str,
    *,
    file: str = DEFAULT_FILE,
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a net, or a file that `save` wrote, to the hub.

    The file is checked before anything is sent. Notes and cards are a part of the file. If the
    repository has no README.md, a short one is added.

    Args:
        net_or_file: The net, as `save` takes it, or the path of the file.
        repo: The repository as "owner/name". It is created if it does not exist.
        file: The file's name in the repository; it must end in .safetensors.
        revision: A branch, which is created if it does not exist. Default: main.
        private: Whether a repository that is created here is private. None: the hub's default.
        message: The commit's message. Default: the architecture and the depths.
        token: The user's token. Default: the one stored at login.

    Returns:
        The hf:// name of exactly this version.

    Raises:
        ValueError: `file` does not end in .safetensors, or `net_or_file` is not a valid checkpoint.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    check_hub_library()
    if not file.endswith(".safetensors"):
        raise ValueError(f"file {file!r}: expected a name that ends in .safetensors")
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory() as folder:
        if isinstance(net_or_file, (str, os.PathLike)):
            path = Path(net_or_file)
        else:
            path = Path(folder, DEFAULT_FILE)
            save(net_or_file, path)
        description = read_header(path)
        api = HfApi(token=token, library_name="elasticnet")
        # The hub answers with the full name: it adds the user's name to one without an owner.
        repo_id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=path)]
        if not api.file_exists(repo_id, "README.md", revision=revision):
            readme = _readme(description, repo_id, file).encode()
            operations.append(CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=readme))
        if message is None:
            name = description["architecture"] or "Custom network"
            message = f"{name}, depths {_listed(description['taps'])}"
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return f"hf://{repo_id}@{commit.oid}/{file}"


def _readme(description: Description, repo: str, file: str) -> str:
    """Return a README.md with a line of code that loads the file."""
    file_suffix = "" if file == DEFAULT_FILE else f"/{file}"
    build_argument = "" if description["architecture"] else ", build=make_my_net"
    return README.format(
        title=repo.partition("/")[2],  # the name without the owner
        depths=_listed(description["taps"]),
        repo=repo,
        file_suffix=file_suffix,
        depth=description["taps"][0],
        build_argument=build_argument,
    )


def _listed(taps: list[int]) -> str:
    """Return depths for a sentence, such as "1, 2, 3"."""
    return ", ".join(str(tap) for tap in taps)
