"""Who may call: tokens and their file, scopes, certificates, and where a server may listen."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import stream_pb2 as pb
from runtime.errors import ConfigError, OutputError, UsageError
from runtime.serve.auth import LOCAL, Address, Gatekeeper, TlsFiles, TokenFile, check_exposure, new_token
from runtime.serve.status import Refused
from tests.fakes import stream
from tests.serving import config, connected, details, ends, in_batches, serving, talk
from tests.test_servicer import run


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.txt"


# -- the file of tokens ---------------------------------------------------


def test_a_token_has_256_random_bits_and_its_file_holds_only_their_hash(tokens):
    token = new_token(tokens, "camera", ["stream"])
    assert len(token) == len("legato_") + 43
    assert token not in tokens.read_text() and token[7:] not in tokens.read_text()
    assert tokens.stat().st_mode & 0o777 == 0o600
    assert token != new_token(tokens, "other", ["stream"])


def test_a_token_is_found_with_its_scopes(tokens):
    token = new_token(tokens, "camera", ["stream", "describe"])
    caller = TokenFile(tokens).find(token)
    assert caller.name == "token:camera"
    assert caller.scopes == {"stream", "describe"}
    assert TokenFile(tokens).find(token + "x") is None
    assert TokenFile(tokens).find("") is None


def test_a_token_made_later_counts_and_one_whose_line_is_gone_does_not(tokens):
    first = new_token(tokens, "first", ["stream"])
    known = TokenFile(tokens)
    second = new_token(tokens, "second", ["stream"])
    assert known.find(second) is not None
    tokens.write_text("".join(line + "\n" for line in tokens.read_text().splitlines() if "first" not in line))
    assert known.find(first) is None
    assert known.find(second) is not None


def test_a_file_that_is_gone_or_that_others_may_write_lets_nobody_in(tokens):
    token = new_token(tokens, "camera", ["stream"])
    known = TokenFile(tokens)
    tokens.chmod(0o666)
    assert known.find(token) is None
    tokens.chmod(0o600)
    assert known.find(token) is not None
    tokens.unlink()
    assert known.find(token) is None


def test_lines_that_are_no_tokens_are_left_out(tokens):
    token = new_token(tokens, "camera", ["stream"])
    tokens.write_bytes(b"\xff\xfe nonsense\n# a note\n\n" + b"0" * 64 + b" root me\n" + tokens.read_bytes())
    tokens.chmod(0o600)
    assert TokenFile(tokens).find(token) is not None
    assert len(TokenFile(tokens)._entries) == 1


def test_a_torn_line_does_not_swallow_the_next(tokens):
    tokens.write_text("0123 cut off in the mid")
    token = new_token(tokens, "camera", ["stream"])
    assert TokenFile(tokens).find(token) is not None


@pytest.mark.parametrize(("name", "scopes", "why"), [
    ("camera", ["root"], "scope 'root' is unknown"),
    ("camera", [], "opens nothing"),
    ("two words", ["stream"], "is no name"),
    ("a\nb", ["stream"], "is no name"),
])  # fmt: skip
def test_a_token_needs_a_name_and_scopes(tokens, name, scopes, why):
    with pytest.raises(UsageError, match=why):
        new_token(tokens, name, scopes)
    assert not tokens.exists()


def test_a_name_is_given_once(tokens):
    new_token(tokens, "camera", ["stream"])
    with pytest.raises(UsageError, match="called camera already"):
        new_token(tokens, "camera", ["stream"])


def test_a_server_does_not_start_with_a_file_it_cannot_use(tokens, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenFile(tokens)
    tokens.write_text("")
    with pytest.raises(ConfigError, match="holds no token; make one: legato token new"):
        TokenFile(tokens)
    with pytest.raises(OutputError):
        new_token(tmp_path, "camera", ["stream"])


# -- calls ---------------------------------------------------


@pytest.mark.parametrize(("scopes", "needed", "allowed"), [
    (["stream"], "stream", True), (["stream"], "describe", False), (["describe"], "stream", False),
    (["admin"], "stream", True), (["admin"], "describe", True), (["stream"], "admin", False),
])  # fmt: skip
def test_scopes(tokens, scopes, needed, allowed):
    token = new_token(tokens, "y", scopes)
    gate = Gatekeeper(TokenFile(tokens))
    if allowed:
        assert gate.admit(needed, bearer(token), {}).name == "token:y"
        return
    with pytest.raises(Refused, match=f"scope '{needed}' is needed") as caught:
        gate.admit(needed, bearer(token), {})
    assert caught.value.code == "PERMISSION_DENIED"


@pytest.mark.parametrize("metadata", [
    [], [("authorization", "")], [("authorization", "Bearer")], [("authorization", "Bearer wrong")],
    [("authorization", "Basic {token}")], [("authorization", "{token}")], [("authorization", b"\xff")],
    [("authorization", "Bearer {token}"), ("authorization", "Bearer {token}")], [("authorization", "Bearer \udcff")],
])  # fmt: skip
def test_anything_but_one_good_token_is_unauthenticated(tokens, metadata):
    token = new_token(tokens, "camera", ["stream"])
    sent = [(k, v.replace("{token}", token) if isinstance(v, str) else v) for k, v in metadata]
    with pytest.raises(Refused) as caught:
        Gatekeeper(TokenFile(tokens)).admit("stream", sent, {})
    assert caught.value.code == "UNAUTHENTICATED"
    assert token not in caught.value.message


def test_without_tokens_everybody_on_this_machine_may():
    assert Gatekeeper().admit("describe", [], {}) is LOCAL


def test_calls_without_a_good_token_get_nowhere(tokens):
    stream_only, describe_only = (new_token(tokens, s, [s]) for s in ("stream", "describe"))
    whole = [config(), *in_batches(stream(2.0)), *ends()]

    async def scenario() -> None:
        async with serving(tokens=tokens) as server, connected(server) as stub:
            assert (await talk(server, whole)).code == "UNAUTHENTICATED"
            assert (await talk(server, whole, metadata=bearer("legato_wrong"))).code == "UNAUTHENTICATED"
            heard = await talk(server, whole, metadata=bearer(describe_only))
            assert heard.code == "PERMISSION_DENIED"
            assert details(heard.error)["ErrorInfo"].reason == "DENIED"
            assert (await talk(server, whole, metadata=bearer(stream_only))).code == "OK"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.DescribeBundle(pb.DescribeBundleRequest(), metadata=bearer(stream_only))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            described = await stub.DescribeBundle(pb.DescribeBundleRequest(), metadata=bearer(describe_only))
            assert described.bundle.name == "fake"

    run(scenario)


def test_reflection_needs_the_scope_describe(tokens):
    stream_only, describe_only = (new_token(tokens, s, [s]) for s in ("stream", "describe"))

    async def names(server: Any, token: str) -> list[str]:
        async with grpc.aio.insecure_channel(server.where) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(metadata=bearer(token))
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            await call.done_writing()
            return [s.name async for r in call for s in r.list_services_response.service]

    async def scenario() -> None:
        async with serving(tokens=tokens) as server:
            assert "legato.v1.InferenceService" in await names(server, describe_only)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await names(server, stream_only)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    run(scenario)


def test_another_caller_cannot_resume_a_stream(tokens):
    anna, bert = (new_token(tokens, name, ["stream"]) for name in ("anna", "bert"))

    async def scenario() -> None:
        async with serving(tokens=tokens) as server:
            async with connected(server) as stub:
                call = stub.Stream(metadata=bearer(anna))
                await call.write(config())
                token = (await call.read()).started.resume_token
                call.cancel()
            assert (await talk(server, [config(resume_token=token)], metadata=bearer(bert))).code == "PERMISSION_DENIED"
            heard = await talk(server, [config(resume_token=token)], metadata=bearer(anna))
            assert heard.started.resumed

    run(scenario)


# -- where to listen ---------------------------------------------------


@pytest.mark.parametrize(("text", "local"), [
    ("127.0.0.1:0", True), ("127.8.9.1:50051", True), ("[::1]:50051", True), ("localhost:1", True),
    ("unix:/tmp/x.sock", True), ("0.0.0.0:50051", False), ("[::]:50051", False), ("192.168.1.4:1", False),
    ("example.org:443", False),
])  # fmt: skip
def test_addresses(text, local):
    assert Address.parse(text).local is local


@pytest.mark.parametrize("text", ["", "50051", ":50051", "host:", "host:x", "host:70000", "::1:50051", "unix:", "h:-1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="is no address; write HOST:PORT"):
        Address.parse(text)


def test_strangers_are_not_served_in_the_clear_unless_that_is_said_aloud():
    outside, inside = Address.parse("0.0.0.0:1"), Address.parse("127.0.0.1:1")
    with pytest.raises(ConfigError, match="say --insecure"):
        check_exposure(outside, None, tokens=False, insecure=False)
    check_exposure(outside, None, tokens=False, insecure=True)
    check_exposure(inside, None, tokens=True, insecure=False)


def test_tokens_never_cross_a_network_in_the_clear():
    for insecure in (False, True):
        with pytest.raises(ConfigError, match="would let anybody on the way read them"):
            check_exposure(Address.parse("0.0.0.0:1"), None, tokens=True, insecure=insecure)


# -- TLS ---------------------------------------------------


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def certificate(folder: Path, name: str, *, days: int = 2, authority: str = "ca") -> None:
    """A key and a certificate for localhost, signed by an authority."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (folder / "ext").write_text("subjectAltName=DNS:localhost\n")
    signing = ("-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", "ext")
    if days > 0:
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.crt", "-days", str(days))
        return
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text("01\n")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=a\n[a]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "[p]\ncommonName=supplied\n"
    )
    old = ("-startdate", "20200101000000Z", "-enddate", "20200201000000Z", "-extfile", "ext", "-notext")
    signer = ("-cert", f"{authority}.crt", "-keyfile", f"{authority}.key")
    openssl(folder, "ca", "-batch", "-config", "ca.cnf", "-in", f"{name}.csr", *signer, "-out", f"{name}.crt", *old)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: Any) -> Path:
    """Authorities, and certificates that are good, expired, or of another authority."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; it makes the certificates of this test")
    folder = tmp_path_factory.mktemp("pki")
    for authority in ("ca", "foreign"):
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-x509", "-days", "2")
        openssl(folder, "req", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.crt", "-subj", "/CN=ca")
    certificate(folder, "server")
    certificate(folder, "client")
    certificate(folder, "stranger", authority="foreign")
    certificate(folder, "expired", days=0)
    return folder


def files(pki: Path, name: str = "server", ca: str | None = None) -> TlsFiles:
    return TlsFiles(cert=pki / f"{name}.crt", key=pki / f"{name}.key", client_ca=None if ca is None else pki / ca)


def trusting(pki: Path, client: str | None = None) -> Any:
    """A client's credentials."""
    chain = None if client is None else (pki / f"{client}.crt").read_bytes()
    key = None if client is None else (pki / f"{client}.key").read_bytes()
    return grpc.ssl_channel_credentials((pki / "ca.crt").read_bytes(), key, chain)


WHOLE = [config(), *in_batches(stream(2.0)), *ends()]


def test_tls_with_tokens(pki, tokens):
    token = new_token(tokens, "camera", ["stream"])

    async def scenario() -> None:
        async with serving(tls=files(pki), tokens=tokens) as server:
            heard = await talk(server, WHOLE, metadata=bearer(token), credentials=trusting(pki))
            assert heard.code == "OK"
            assert (await talk(server, WHOLE, credentials=trusting(pki))).code == "UNAUTHENTICATED"
            assert (await talk(server, WHOLE, metadata=bearer(token))).code == "UNAVAILABLE"  # in the clear

    run(scenario)


@pytest.mark.parametrize(("client", "code"), [
    ("client", "OK"), (None, "UNAVAILABLE"), ("stranger", "UNAVAILABLE"), ("expired", "UNAVAILABLE"),
])  # fmt: skip
def test_clients_show_certificates_where_they_are_asked_for(pki, client, code):
    async def scenario() -> None:
        async with serving(tls=files(pki, ca="ca.crt")) as server:
            assert (await talk(server, WHOLE, credentials=trusting(pki, client))).code == code
            assert (await talk(server, WHOLE, credentials=trusting(pki, "client"))).code == "OK"

    run(scenario)


def test_a_client_does_not_trust_an_expired_certificate(pki):
    async def scenario() -> None:
        async with serving(tls=files(pki, "expired")) as server:
            assert (await talk(server, WHOLE, credentials=trusting(pki))).code == "UNAVAILABLE"

    run(scenario)


def test_a_certificate_can_be_renewed_while_the_server_runs(pki, tmp_path):
    for name, source in (("now.crt", "expired.crt"), ("now.key", "expired.key")):
        shutil.copy(pki / source, tmp_path / name)
    old = (tmp_path / "now.crt").stat().st_mtime_ns

    async def scenario() -> None:
        async with serving(tls=TlsFiles(cert=tmp_path / "now.crt", key=tmp_path / "now.key")) as server:
            assert (await talk(server, WHOLE, credentials=trusting(pki))).code == "UNAVAILABLE"
            for name, source in (("now.crt", "server.crt"), ("now.key", "server.key")):
                shutil.copy(pki / source, tmp_path / name)
                os.utime(tmp_path / name, ns=(old + 10**9, old + 10**9))
            assert (await talk(server, WHOLE, credentials=trusting(pki))).code == "OK"

    run(scenario)


def test_files_that_do_not_fit_are_found_at_the_start(pki, tmp_path):
    mixed = TlsFiles(cert=pki / "server.crt", key=pki / "client.key")
    with pytest.raises(ConfigError, match="do not belong together"):
        mixed.check()
    with pytest.raises(ConfigError, match=r"--tls-key .* cannot be read"):
        TlsFiles(cert=pki / "server.crt", key=tmp_path / "none").check()
    (tmp_path / "no.crt").write_text("hello")
    with pytest.raises(ConfigError, match="holds no certificate"):
        TlsFiles(cert=pki / "server.crt", key=pki / "server.key", client_ca=tmp_path / "no.crt").check()
