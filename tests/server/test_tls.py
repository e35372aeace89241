"""TLS with certificates made here: both directions, replaced while serving, and a whole session that tells nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from likewise import AsyncClient, Client
from likewise.errors import Unauthenticated, Unavailable
from likewise_server import tls, tokens
from likewise_server.errors import FailedPrecondition
from support.access import written
from support.pictures import photograph_jpegs
from support.server import ServerProcess, clean_environment, serving, start_server


@dataclass
class Issued:
    """Files of a certificate."""

    cert: Path
    key: Path

    def write(self, made: trustme.LeafCert) -> None:
        """Replace them, each by another file."""
        for path, blob in ((self.cert, made.cert_chain_pems[0]), (self.key, made.private_key_pem)):
            aside = path.with_suffix(".new")
            aside.write_bytes(blob.bytes())
            aside.replace(path)


@dataclass
class Site:
    """A server with TLS, client certificates and tokens."""

    process: ServerProcess
    authority: trustme.CA
    ca: Path
    server: Issued
    client: Issued
    token: str

    def open(self, **given: object) -> Client:
        options: dict[str, object] = {
            "ca": self.ca,
            "cert": self.client.cert,
            "key": self.client.key,
            "token": self.token,
        }
        return Client(f"localhost:{self.process.port}", retries=0, **(options | given))  # type: ignore[arg-type]


def issue(folder: Path, authority: trustme.CA, name: str) -> Issued:
    made = Issued(folder / f"{name}.pem", folder / f"{name}.key")
    made.write(authority.issue_cert("localhost", "127.0.0.1", common_name=name))
    return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    server, client = issue(folder, authority, "server"), issue(folder, authority, "indexer-7")
    (folder / "data").mkdir()
    token = tokens.create(folder / "data", "everything", scopes=tokens.SCOPES)
    # Off loopback: TLS and tokens are there, so --insecure is not needed.
    options = ["--host", "0.0.0.0", "--precision", "fp32", "--log-level", "debug"]  # noqa: S104
    options += ["--tls-cert", str(server.cert), "--tls-key", str(server.key), "--tls-client-ca", str(ca)]
    with start_server(folder / "data", *options) as process:
        yield Site(process, authority, ca, server, client, token)
        assert process.stop() == 0, process.log.read_text()[-2000:]


def serial(port: int, site: Site) -> int:
    """The serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=site.ca)
    context.load_cert_chain(site.client.cert, site.client.key)
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        found = wrapped.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def test_a_whole_session_works_and_tells_no_secret(site: Site) -> None:
    with site.open() as lw:
        things = lw.create_collection("things")
        things.add(photograph_jpegs()[:2], ids=["a", "b"])
        assert things.search(id="a", k=1)[0].id == "b"
        lw.delete_collection("things")
    said = ""
    with site.open(token="lw_" + "1" * 12 + "_" + "2" * 64) as lw, pytest.raises(Unauthenticated) as caught:
        lw.info()
    said += str(caught.value)
    audit = written(site.process.data / "audit.jsonl", "UNAUTHENTICATED")
    assert '"certificate": "indexer-7"' in audit
    assert [json.loads(line)["code"] for line in audit.splitlines()].count("UNAUTHENTICATED") == 1
    texts = said + site.process.log.read_text() + audit
    assert "CreateCollection" in texts
    for secret in (site.token, site.token.split("_")[2], "2" * 64):
        assert secret not in texts
    for key in (site.server.key, site.client.key):
        for line in key.read_text().splitlines():
            assert line not in texts


def test_nobody_comes_in_without_all_of_it(site: Site, tmp_path: Path) -> None:
    stranger = trustme.CA()
    other_ca = tmp_path / "other.pem"
    stranger.cert_pem.write_to_path(other_ca)
    theirs = issue(tmp_path, stranger, "stranger")
    for given in (
        {"ca": other_ca},  # the client does not know the server
        {"cert": theirs.cert, "key": theirs.key},  # the server does not know the client
        {"cert": "", "key": ""},
        {"ca": "", "cert": "", "key": ""},  # no TLS at all
    ):
        with site.open(**given) as lw, pytest.raises(Unavailable) as caught:
            lw.info()
        assert ("LIKEWISE_CA" in str(caught.value)) == (given.get("ca") == "")
    for token in ("", "lw_wrong"):
        with site.open(token=token) as lw, pytest.raises(Unauthenticated):
            lw.info()
    with site.open() as lw:
        assert lw.info().version


def test_the_command_line_takes_it_from_options_and_environment(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(site.token + "\n")
    environment = {"LIKEWISE_CERT": str(site.client.cert), "LIKEWISE_KEY": str(site.client.key)}
    flags = ["--ca", str(site.ca), "--token-file", str(file)]
    for options, more in ((flags, {}), ([], {"LIKEWISE_CA": str(site.ca), "LIKEWISE_TOKEN": site.token})):
        command = [sys.executable, "-m", "likewise.cli", *options, "info", "--server", f"localhost:{site.process.port}"]
        done = subprocess.run(
            [*command, "--json"],
            capture_output=True,
            text=True,
            check=False,
            env=clean_environment() | environment | more,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["default_backbone"] == "likewise-tiny"


def test_certificates_are_replaced_while_it_serves(site: Site) -> None:
    before = serial(site.process.port, site)
    with site.open() as lw:
        lw.info()
        whole = site.server.cert.read_bytes()
        site.server.cert.write_text("no certificate")
        assert serial(site.process.port, site) == before  # goes on with what it had
        site.server.cert.write_bytes(site.authority.issue_cert("localhost").cert_chain_pems[0].bytes())
        assert serial(site.process.port, site) == before  # whose key is another
        site.server.cert.write_bytes(whole)
        site.server.write(site.authority.issue_cert("localhost", "127.0.0.1"))
        after = serial(site.process.port, site)
        assert after != before
        assert lw.info().version  # connections that are open stay
    with site.open() as lw:
        assert lw.info().version
    log = site.process.log.read_text()
    assert "tls goes on with the certificate it had" in log
    assert "tls certificate replaced" in log
    key = site.server.key
    key.unlink()
    assert serial(site.process.port, site) == after
    site.server.write(site.authority.issue_cert("localhost", "127.0.0.1"))
    assert serial(site.process.port, site) not in (before, after)


def test_bad_files_are_said_at_the_start(tmp_path: Path) -> None:
    authority = trustme.CA()
    one, two = issue(tmp_path, authority, "one"), issue(tmp_path, authority, "two")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for files in (
        tls.Files(one.cert, two.key),
        tls.Files(text, one.key),
        tls.Files(one.cert, tmp_path / "no-such.key"),
        tls.Files(one.cert, one.key, text),
    ):
        with pytest.raises(FailedPrecondition, match="--tls-cert and --tls-key need") as caught:
            tls.server_credentials(files)
        assert one.key.read_text().splitlines()[1] not in str(caught.value)
    for half in ((one.cert, None, None), (None, one.key, None), (None, None, one.cert)):
        with pytest.raises(FailedPrecondition, match="needs both"):
            tls.Files.of(*half)
    assert tls.Files.of(None, None, None) is None


def test_an_encrypted_key_is_an_error_and_no_question(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415

    made = issue(tmp_path, trustme.CA(), "one")
    key = form.load_pem_private_key(made.key.read_bytes(), None)
    locked = form.BestAvailableEncryption(b"secret")
    made.key.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked))
    with pytest.raises(FailedPrecondition, match="unencrypted"):
        tls.server_credentials(tls.Files(made.cert, made.key))


@pytest.mark.parametrize(
    ("has_tls", "has_token", "required", "missing"),
    [
        (False, False, False, ["--tls-cert", "likewise tokens create"]),
        (True, False, False, ["likewise tokens create"]),
        (False, True, False, ["--tls-cert"]),
        (False, False, True, ["--tls-cert"]),
    ],
)
async def test_beyond_this_machine_it_wants_tls_and_tokens(
    tmp_path: Path, has_tls: bool, has_token: bool, required: bool, missing: list[str]
) -> None:
    options: dict[str, Any] = {"host": "0.0.0.0", "require_tokens": required}  # noqa: S104
    if has_token:
        tokens.create(tmp_path / "d", "one", scopes=["embed"])
    if has_tls:
        made = issue(tmp_path, trustme.CA(), "one")
        options |= {"tls_cert": made.cert, "tls_key": made.key}
    with pytest.raises(FailedPrecondition, match="--insecure") as caught:
        async with serving(tmp_path / "d", **options):
            pass
    for part in ("--tls-cert", "likewise tokens create"):
        assert (part in str(caught.value)) == (part in missing)
    assert not (tmp_path / "d" / "likewise.db").exists()


async def test_told_insecure_it_serves_other_machines(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, host="0.0.0.0", insecure=True) as running,  # noqa: S104
        AsyncClient(f"127.0.0.1:{running.port}") as lw,
    ):
        assert (await lw.info()).version


async def test_with_require_tokens_nobody_comes_in_until_there_is_one(tmp_path: Path) -> None:
    async with serving(tmp_path, require_tokens=True) as running:
        address = f"127.0.0.1:{running.port}"
        async with AsyncClient(address) as lw:
            with pytest.raises(Unauthenticated, match="tokens create"):
                await lw.info()
        secret = tokens.create(tmp_path, "first", scopes=["embed"])
        await asyncio.sleep(2 * tokens.LOOK_S)
        async with AsyncClient(address, token=secret) as lw:
            assert (await lw.info()).version
