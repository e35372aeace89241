"""What the client makes of `ca`, `token` and the environment, before it says a word to anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from likewise import Client
from likewise.errors import InvalidArgument, NotFound
from likewise.security import Security

TOKEN = "lw_abc_secret"  # noqa: S105  # nobody's


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA", "CERT", "KEY", "TOKEN", "TOKEN_FILE", "INSECURE"):
        monkeypatch.delenv(f"LIKEWISE_{name}", raising=False)


@pytest.mark.parametrize(
    "address",
    [
        "localhost:50051",
        "127.0.0.1:1",
        "127.9.9.9:1",
        "[::1]:1",
        "unix:/run/likewise.sock",
        "ipv4:127.0.0.1:1",
        "dns:///localhost:1",
    ],
)
def test_a_token_goes_to_this_machine_without_tls(address: str) -> None:
    assert Security.of(address, token=TOKEN).metadata() == (("authorization", f"Bearer {TOKEN}"),)


@pytest.mark.parametrize(
    "address",
    [
        "images.example:50051",
        "10.0.0.7:1",
        "[2001:db8::1]:1",
        "localhost.example:1",
        "127.0.0.1.example:1",
        "dns:///images.example:1",
    ],
)
def test_a_token_does_not_cross_the_network_unprotected(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="unprotected") as caught:
        Client(address, token=TOKEN)
    assert TOKEN not in str(caught.value)
    assert Security.of(address, token=TOKEN, ca="public").tls
    assert Security.of(address, token=TOKEN, insecure=True).token == TOKEN
    monkeypatch.setenv("LIKEWISE_INSECURE", "1")
    assert Security.of(address, token=TOKEN).token == TOKEN
    with pytest.raises(InvalidArgument):
        Security.of(address, token=TOKEN, insecure=False)


def test_the_environment_fills_in_and_arguments_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, file = tmp_path / "ca.pem", tmp_path / "token"
    pem.write_bytes(b"PEM")
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("LIKEWISE_CA", str(pem))
    monkeypatch.setenv("LIKEWISE_TOKEN_FILE", str(file))
    assert Security.of("far:1") == Security(tls=True, ca=b"PEM", token=TOKEN)
    other, mine = f"{TOKEN}2", f"{TOKEN}3"
    monkeypatch.setenv("LIKEWISE_TOKEN", other)
    assert Security.of("far:1").token == other
    assert Security.of("far:1", token=mine).token == mine
    assert Security.of("far:1", ca="", token="") == Security()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"cert": "a"}, InvalidArgument),
        ({"key": "a"}, InvalidArgument),
        ({"cert": "a", "key": "b"}, InvalidArgument),
        ({"ca": "no-such.pem"}, NotFound),
        ({"token": "two\nlines"}, InvalidArgument),
        ({"token": "lw_ä"}, InvalidArgument),
    ],
)
def test_what_does_not_go_together_is_said_at_once(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        Client("localhost:1", **given)
    assert not given.get("token") or given["token"] not in str(caught.value)


def test_secrets_do_not_show() -> None:
    shown = repr(Security(tls=True, key=b"PRIVATE", token=TOKEN))
    assert TOKEN not in shown
    assert "PRIVATE" not in shown
