"""Checkpoints to the hub; `load("hf://owner/name")` reads them back. Needs the extra `hub`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from elasticnet.checkpoint.header import Description, read_header
from elasticnet.checkpoint.saving import save
from elasticnet.checkpoint.sources import DEFAULT_FILE, check_hub_library
from elasticnet.wrapper import ElasticWrapper

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

net = elasticnet.load("hf://{repo}{file}", depth={depth}{build})
```
"""


def push_to_hub(
    net_or_file: ElasticWrapper | str | os.PathLike[str],
    repo: str,
    *,
    file: str = DEFAULT_FILE,
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a net, or a file that `save` wrote, to the hub.

    The file is checked before anything is sent; notes and cards travel in it. A repository without
    a README.md gets a short one.

    Args:
        net_or_file: The net, or the path of the file.
        repo: "owner/name"; made when it does not exist.
        file: The file's name there, which ends in .safetensors.
        revision: A branch, made when it does not exist; by default main.
        private: Whether a repository that is made here is private; None leaves it to the hub.
        message: Of the commit; by default architecture and depths.
        token: Of the user; by default the one stored at login.

    Returns:
        The hf:// source of exactly this version.

    Raises:
        ValueError: `file` has another ending, or `load` would refuse the file.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    check_hub_library()
    if not file.endswith(".safetensors"):
        raise ValueError(f"file {file!r}: expected a name that ends in .safetensors")
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory() as folder:
        if isinstance(net_or_file, ElasticWrapper):
            path = Path(folder, DEFAULT_FILE)
            save(net_or_file, path)
        else:
            path = Path(net_or_file)
        description = read_header(path)
        api = HfApi(token=token, library_name="elasticnet")
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(file, path)]
        if not api.file_exists(repo, "README.md", revision=revision):
            readme = _readme(description, repo, file)
            operations.append(CommitOperationAdd("README.md", readme.encode()))
        if message is None:
            name = description["architecture"] or "Custom network"
            message = f"{name}, depths {_listed(description['taps'])}"
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    return f"hf://{repo}@{commit.oid}/{file}"


def _readme(description: Description, repo: str, file: str) -> str:
    """Return the page of a repository that has none."""
    return README.format(
        title=repo.partition("/")[2],
        depths=_listed(description["taps"]),
        repo=repo,
        file="" if file == DEFAULT_FILE else f"/{file}",
        depth=description["taps"][0],
        build="" if description["architecture"] else ", build=make_my_net",
    )


def _listed(taps: list[int]) -> str:
    return ", ".join(str(tap) for tap in taps)
