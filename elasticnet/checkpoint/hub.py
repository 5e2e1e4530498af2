"""Checkpoints to the hub; `load("hf://owner/name")` reads them back. Needs the extra `hub`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from elasticnet.checkpoint import read_header, save
from elasticnet.checkpoint.sources import DEFAULT_FILE, hub_library
from elasticnet.wrapper import ElasticWrapper

CARD = """---
library_name: elasticnet
tags:
- elasticnet
---

# {title}

An elastic network: one file, runnable at depth {depths}. Loading a depth reads only its part of the file.

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
    """Upload a net, or a file that `save` wrote, to the hub; return the hf:// source of exactly
    this version.

    repo: "owner/name"; made when it does not exist, with `private` as given. file: its name there.
    revision: a branch, made when it does not exist; default main. token: default is the one stored
    at login. A repository without README.md gets a short one. A file is checked before anything is
    sent; notes and cards travel in it.
    """
    hub_library()
    from huggingface_hub import CommitOperationAdd, HfApi

    if not file.endswith(".safetensors"):
        raise ValueError(f"file {file!r}: expected a name that ends in .safetensors")
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(net_or_file, ElasticWrapper):
            path = Path(folder) / "model.safetensors"
            save(net_or_file, path)
        else:
            path = Path(net_or_file)
        header = read_header(path)
        api = HfApi(token=token, library_name="elasticnet")
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(file, path)]
        if not api.file_exists(repo, "README.md", revision=revision):
            operations.append(CommitOperationAdd("README.md", _card(header, repo, file).encode()))
        message = (
            message
            or f"{header['architecture'] or 'Custom network'}, depths {_listed(header['taps'])}"
        )
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    return f"hf://{repo}@{commit.oid}/{file}"


def _card(header: dict, repo: str, file: str) -> str:
    return CARD.format(
        title=repo.partition("/")[2],
        depths=_listed(header["taps"]),
        repo=repo,
        file="" if file == DEFAULT_FILE else f"/{file}",
        depth=header["taps"][0],
        build="" if header["architecture"] else ", build=make_my_net",
    )


def _listed(taps: list[int]) -> str:
    return ", ".join(map(str, taps))
