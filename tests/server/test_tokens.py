"""The tokens' file and the commands that change it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from likewise_server import tokens
from likewise_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from support.server import clean_environment


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "likewise.cli", "tokens", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=clean_environment())


def test_a_token_is_made_listed_and_revoked(tmp_path: Path) -> None:
    made = run(
        *("create", "ci", "--scope", "search,embed", "--scope", "write", "--collection", "pets-*", "--data", "d"),
        *("--requests-per-s", "10", "--bytes-per-s", "1e6"),
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert re.fullmatch(r"lw_[0-9a-f]{12}_[0-9a-f]{64}", secret)
    assert secret not in made.stderr
    [row] = [json.loads(line) for line in run("list", "--json", "--data", "d", cwd=tmp_path).stdout.splitlines()]
    assert row["scopes"] == ["embed", "search", "write"]
    assert (row["collections"], row["requests_per_s"], row["bytes_per_s"]) == (["pets-*"], 10, 1e6)
    listed = run("list", "--data", "d", cwd=tmp_path).stdout
    assert "ci" in listed
    assert secret.split("_")[2] not in listed
    assert run("revoke", "ci", "--data", "d", cwd=tmp_path).returncode == 0
    assert run("list", "--data", "d", cwd=tmp_path).stdout == ""
    again = run("revoke", "ci", "--data", "d", cwd=tmp_path)
    assert again.returncode == 1
    assert "tokens list" in again.stderr
    assert "Traceback" not in again.stderr


def test_mistakes_are_a_line_each(tmp_path: Path) -> None:
    for arguments, hint in [
        (("create", "ci", "--scope", "serch"), "embed, search, write, train, admin"),
        (("create", "a b", "--scope", "search"), "no name for a token"),
        (("create", "ci", "--scope", "search", "--requests-per-s", "0"), "more than 0"),
    ]:
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert hint in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / "likewise-data" / "tokens.json").exists()


def test_the_file_has_hashes_and_is_private(tmp_path: Path) -> None:
    secret = tokens.create(tmp_path, "ci", scopes=["search"])
    path = tmp_path / "tokens.json"
    assert path.stat().st_mode & 0o777 == 0o600
    [row] = json.loads(path.read_text())["tokens"]
    assert secret.split("_")[2] not in path.read_text()
    assert row["sha256"] == hashlib.sha256(secret.split("_")[2].encode()).hexdigest()
    assert [each.name for each in tmp_path.iterdir()] == ["tokens.json"]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a\n", "x" * 65, "anonymous"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument):
        tokens.create(tmp_path, name, scopes=["search"])


@pytest.mark.parametrize(
    "options",
    [
        {"scopes": []},
        {"scopes": ["all"]},
        {"collections": [""]},
        {"bytes_per_s": -1.0},
        {"requests_per_s": float("nan")},
    ],
)
def test_what_makes_no_token(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        tokens.create(tmp_path, "ci", **({"scopes": ["search"]} | options))


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    first = tokens.create(tmp_path, "ci", scopes=["search"])
    with pytest.raises(AlreadyExists, match="revoke it first"):
        tokens.create(tmp_path, "ci", scopes=["embed"])
    tokens.revoke(tmp_path, "ci")
    second = tokens.create(tmp_path, "ci", scopes=["embed"])
    live = tokens.Tokens(tmp_path)
    assert live.find(first) is None
    found = live.find(second)
    assert found is not None
    assert found.scopes == ("embed",)
    with pytest.raises(NotFound):
        tokens.revoke(tmp_path, "other")


def test_commands_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: tokens.create(tmp_path, f"t{number}", scopes=["embed"]), range(24)))
    assert {token.name for token in tokens.listed(tmp_path)} == {f"t{number}" for number in range(24)}


def test_only_the_whole_secret_opens(tmp_path: Path) -> None:
    secret = tokens.create(tmp_path, "ci", scopes=["search"])
    live = tokens.Tokens(tmp_path)
    assert live.find(secret) is not None
    changed = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    for wrong in ("", "lw_", secret[:-1], secret + "0", secret.upper(), " " + secret, changed, secret.split("_")[2]):
        assert live.find(wrong) is None, wrong


def test_required_from_the_first_token_on_and_ever_after(tmp_path: Path) -> None:
    live = tokens.Tokens(tmp_path)
    assert not live.required()
    assert tokens.Tokens(tmp_path, required=True).required()
    tokens.create(tmp_path, "ci", scopes=["search"])
    time.sleep(2 * tokens.LOOK_S)
    assert live.required()
    tokens.revoke(tmp_path, "ci")
    time.sleep(2 * tokens.LOOK_S)
    assert live.required()
    assert tokens.Tokens(tmp_path).required()  # also after a restart
    (tmp_path / "tokens.json").unlink()
    time.sleep(2 * tokens.LOOK_S)
    assert live.required()


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2, "tokens": []}', '{"format": 1, "tokens": [{}]}', "\0"])
def test_a_broken_file_is_an_error_at_the_start_and_nothing_new_later(tmp_path: Path, content: str) -> None:
    secret = tokens.create(tmp_path, "ci", scopes=["search"])
    live = tokens.Tokens(tmp_path)
    whole = (tmp_path / "tokens.json").read_bytes()
    (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(FailedPrecondition, match=r"tokens\.json"):
        tokens.Tokens(tmp_path)
    with pytest.raises(FailedPrecondition, match=r"tokens\.json"):
        tokens.create(tmp_path, "other", scopes=["search"])  # must not write over it
    time.sleep(2 * tokens.LOOK_S)
    assert live.find(secret) is not None
    (tmp_path / "tokens.json").write_bytes(whole)
    tokens.revoke(tmp_path, "ci")
    time.sleep(2 * tokens.LOOK_S)
    assert live.find(secret) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_the_file_to_the_owner_of_the_data(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    tokens.create(tmp_path, "ci", scopes=["search"])
    found = (tmp_path / "tokens.json").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 1234, 0o600)
