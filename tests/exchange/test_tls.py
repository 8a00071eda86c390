"""TLS: the run's own certificate, pinned by the ticket, or given ones; plaintext only where it was asked for."""

import socket
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from flwr.app import Context, RecordDict
from torch import nn

from flwr_splitfc import (
    Certificate,
    EndpointConfig,
    Limits,
    SplitError,
    connect,
    cut_codec,
)
from flwr_splitfc.exchange import (
    EndpointUnreachable,
    HalfTrainer,
    SharedHalf,
    SplitEndpoint,
)
from flwr_splitfc.exchange.protocol.records import fields_of
from flwr_splitfc.exchange.server.endpoint import certificate
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import ticket_message
from tests.processes.pki import make_pki


def make_endpoint(**config) -> SplitEndpoint:
    half = HalfTrainer(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        partial(torch.optim.SGD, lr=0.1),
        device="cpu",
    )
    limits = Limits(reconnect_timeout_s=0.2)
    return SplitEndpoint(
        SharedHalf(half),
        cut_codec("float32"),
        config=EndpointConfig(limits=limits, **config),
    )


def trains(message, context: Context | None = None) -> bool:
    x, y = batches(1)[0]
    with connect(message, context) as session:
        session.loss(seeded(DeviceHalf)(x), y).backward()
    return session.metrics()["steps"] == 1


def node(**config) -> Context:
    return Context(
        run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={}
    )


def make_ca(folder: Path, host: str) -> tuple[Path, Path, Path]:
    pki = make_pki(folder, host)
    return pki.chain, pki.key, pki.ca


def test_the_runs_own_certificate_comes_with_the_ticket():
    with make_endpoint(tls=True) as endpoint:
        message = ticket_message(endpoint)
        assert "BEGIN CERTIFICATE" in fields_of(message.content)["authority"]
        assert "PRIVATE" not in str(fields_of(message.content))
        assert trains(message)


def test_every_run_has_another_certificate_and_devices_accept_no_other():
    with make_endpoint(tls=True) as endpoint, make_endpoint(tls=True) as other:
        foreign = fields_of(ticket_message(other).content)["authority"]
        with pytest.raises(EndpointUnreachable):
            trains(ticket_message(endpoint, authority=foreign))
        assert trains(ticket_message(endpoint))


def test_plaintext_is_not_spoken_to_a_tls_endpoint():
    with make_endpoint(tls=True) as endpoint:
        with pytest.raises(EndpointUnreachable):
            trains(ticket_message(endpoint, tls="off"))
        assert endpoint.halves.half.steps == 0


def test_nor_tls_to_a_plaintext_one():
    with make_endpoint() as endpoint, make_endpoint(tls=True) as other:
        foreign = fields_of(ticket_message(other).content)["authority"]
        message = ticket_message(endpoint, tls="pinned", authority=foreign)
        with pytest.raises(EndpointUnreachable):
            trains(message)


def test_own_certificate_and_ca(tmp_path):
    given = Certificate.from_files(*make_ca(tmp_path, "127.0.0.1"))
    with make_endpoint(certificate=given) as endpoint:
        assert trains(ticket_message(endpoint))
        assert endpoint.issue("train", "0", 1).tls == "verified"


def test_own_certificate_for_another_host_is_refused_by_devices(tmp_path):
    given = Certificate.from_files(*make_ca(tmp_path, "elsewhere.example"))
    with (
        make_endpoint(certificate=given) as endpoint,
        pytest.raises(EndpointUnreachable),
    ):
        trains(ticket_message(endpoint))


def test_a_ca_that_the_system_does_not_know_must_be_given(tmp_path):
    chain, key, _ = make_ca(tmp_path, "127.0.0.1")
    with (
        make_endpoint(certificate=Certificate.from_files(chain, key)) as endpoint,
        pytest.raises(EndpointUnreachable),
    ):
        trains(ticket_message(endpoint))


def test_files_that_are_none(tmp_path):
    chain, key, ca = make_ca(tmp_path, "127.0.0.1")
    (tmp_path / "more").mkdir()
    _, other_key, _ = make_ca(tmp_path / "more", "127.0.0.1")
    with pytest.raises(ValueError, match=r"key\.pem is not the key of"):
        Certificate.from_files(chain, other_key, ca)
    with pytest.raises(ValueError, match="no PEM certificate"):
        Certificate.from_files(key, key)
    with pytest.raises(ValueError, match="no PEM private key"):
        Certificate.from_files(chain, chain)
    with pytest.raises(ValueError, match="no PEM certificate"):
        Certificate.from_files(chain, key, key)
    with pytest.raises(OSError, match="missing"):
        Certificate.from_files(tmp_path / "missing.pem", key)


VALID_NOW = timedelta(days=-1)
EXPIRED = timedelta(days=-3)


def signed(key, name: str, by, issuer: str, starts_in: timedelta = VALID_NOW) -> bytes:
    """A certificate for 127.0.0.1 of a private key, signed by another one."""
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)])
        for each in (issuer, name)
    ]
    start = datetime.now(UTC) + starts_in
    made = x509.CertificateBuilder(
        *names, key.public_key(), 1, start, start + timedelta(days=2)
    )
    host = x509.IPAddress(ip_address("127.0.0.1"))
    made = made.add_extension(x509.SubjectAlternativeName([host]), critical=False)
    may_sign = x509.BasicConstraints(ca=name != "server", path_length=None)
    made = made.add_extension(may_sign, critical=True)
    digest = None if isinstance(by, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return made.sign(by, digest).public_bytes(serialization.Encoding.PEM)


def key_file(folder: Path, key) -> Path:
    private = folder / "server.key"
    plain = serialization.NoEncryption()
    pkcs8 = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    return private


def self_signed(folder: Path, key, starts_in=VALID_NOW) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 of a private key, which is its own authority, and the key."""
    chain = folder / "self.pem"
    chain.write_bytes(signed(key, "server", key, "server", starts_in))
    return chain, key_file(folder, key)


@pytest.mark.parametrize(
    "make_key",
    [
        partial(rsa.generate_private_key, 65537, 2048),
        partial(ec.generate_private_key, ec.SECP256R1()),
        partial(ec.generate_private_key, ec.SECP384R1()),
    ],
    ids=["RSA", "P-256", "P-384"],
)
def test_keys_with_which_devices_connect(make_key, tmp_path):
    chain, key = self_signed(tmp_path, make_key())
    with make_endpoint(
        certificate=Certificate.from_files(chain, key, chain)
    ) as endpoint:
        assert trains(ticket_message(endpoint))


@pytest.mark.parametrize(
    ("make_key", "kind"),
    [
        (ed25519.Ed25519PrivateKey.generate, "Ed25519"),
        (partial(ec.generate_private_key, ec.SECP521R1()), "secp521r1"),
        (partial(ec.generate_private_key, ec.SECP256K1()), "secp256k1"),
    ],
)
def test_keys_with_which_no_device_connects_are_refused(make_key, kind, tmp_path):
    chain, key = self_signed(tmp_path, make_key())
    config = {"split-certificate": str(chain), "split-private-key": str(key)}
    why = f"^split-certificate, .* is of the kind {kind}, .* wanted RSA, or"
    with pytest.raises(ValueError, match=why):
        EndpointConfig.from_run_config(config)


@pytest.mark.parametrize("starts_in", [EXPIRED, timedelta(days=1)])
def test_a_certificate_that_is_not_valid_now_is_refused(starts_in, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    chain, private = self_signed(tmp_path, key, starts_in)
    with pytest.raises(ValueError, match=r"is valid from .* and not now"):
        Certificate.from_files(chain, private)


def signed_twice(folder: Path, **starts_in: timedelta) -> tuple[Path, Path, Path]:
    """A chain with a certificate in between, the key, and three authorities.

    Of these the second is the first when it was older, and the third another's.
    """
    root, between, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    chain, authority = folder / "chain.pem", folder / "ca.pem"
    chain.write_bytes(
        signed(server, "server", between, "between")
        + signed(between, "between", root, "root", starts_in.get("between", VALID_NOW))
    )
    authority.write_bytes(
        signed(root, "root", root, "root", starts_in.get("root", VALID_NOW))
        + signed(root, "root", root, "root", EXPIRED)
        + signed(server, "another", server, "another", EXPIRED)
    )
    return chain, key_file(folder, server), authority


@pytest.mark.parametrize("old", ["root", "between"])
def test_signers_that_are_not_valid_now_are_refused(old, tmp_path):
    files = signed_twice(tmp_path, **{old: EXPIRED})
    with pytest.raises(ValueError, match=f"CN={old}' is valid from .* and not now"):
        Certificate.from_files(*files)


def test_old_authorities_that_no_device_looks_at_are_taken(tmp_path):
    given = Certificate.from_files(*signed_twice(tmp_path))
    with make_endpoint(certificate=given) as endpoint:
        assert trains(ticket_message(endpoint))


def test_what_stands_before_a_pem_is_left_out(tmp_path):
    files = make_ca(tmp_path, "127.0.0.1")
    for file in files:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    with make_endpoint(certificate=Certificate.from_files(*files)) as endpoint:
        assert trains(ticket_message(endpoint))


def test_only_where_nobody_listens_another_machine_is_thought_of(tmp_path):
    hint = "That address is this node's own machine"
    given = Certificate.from_files(*make_ca(tmp_path, "elsewhere.example"))
    with make_endpoint(certificate=given) as endpoint:
        message = ticket_message(endpoint)
        with pytest.raises(EndpointUnreachable) as reached:
            trains(message)
    with pytest.raises(EndpointUnreachable, match=hint):
        trains(message)
    assert hint not in str(reached.value)


@pytest.mark.parametrize("tls", [False, True])
def test_where_connections_are_closed_no_other_machine_is_thought_of(tls):
    """As by an endpoint that has as many as it takes."""

    def close_each() -> None:
        with suppress(OSError):
            while True:
                listener.accept()[0].close()

    with (
        make_endpoint(tls=tls) as endpoint,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        Thread(target=close_each, daemon=True).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        changes = {"address": address, "reconnect-timeout-s": 0.1}
        with pytest.raises(EndpointUnreachable) as closed:
            trains(ticket_message(endpoint, **changes))
        listener.shutdown(socket.SHUT_RDWR)
    assert "own machine" not in str(closed.value)


def test_private_keys_and_tokens_are_not_printed():
    with make_endpoint(tls=True) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        assert "PRIVATE" not in repr(Certificate.for_run())
        assert ticket.token not in repr(ticket)


def test_every_interface_with_tls_and_an_address_of_its_own():
    with make_endpoint(host="0.0.0.0", address="127.0.0.1") as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        assert ticket.tls == "pinned"
        assert ticket.address.startswith("127.0.0.1:")
        assert trains(ticket_message(endpoint))


def test_plaintext_off_loopback_only_in_so_many_words(caplog):
    with make_endpoint(host="0.0.0.0", address="127.0.0.1", tls=False) as endpoint:
        assert trains(ticket_message(endpoint))
    assert "plaintext" in caplog.text


@pytest.mark.parametrize("address", ["ml.example.org", "10.0.0.7", "2001:db8::7"])
def test_an_address_off_loopback_gets_tls_wherever_the_server_listens(address):
    """Behind a proxy or a tunnel, the server itself listens on loopback."""
    with make_endpoint(address=address) as endpoint:
        assert endpoint.issue("train", "0", 1).tls == "pinned"
        assert trains(ticket_message(endpoint), node(**{"split-address": "127.0.0.1"}))


def test_plaintext_to_an_address_off_loopback_is_warned_of(caplog):
    with make_endpoint(address="ml.example.org:443", tls=False) as endpoint:
        assert endpoint.issue("train", "0", 1).tls == "off"
    assert "cross the network in plaintext" in caplog.text


def test_a_node_that_leaves_loopback_in_plaintext_is_warned(caplog):
    """Its own config has it connect elsewhere than the ticket says."""
    caplog.set_level("WARNING", "flwr")
    with make_endpoint() as endpoint:
        assert trains(ticket_message(endpoint))
        assert not caplog.text
        elsewhere = node(**{"split-address": "unreachable.invalid"})
        with pytest.raises(EndpointUnreachable):
            trains(ticket_message(endpoint), elsewhere)
    assert "go to unreachable.invalid" in caplog.text
    assert "in plaintext" in caplog.text


@pytest.mark.parametrize("ahead", [timedelta(days=2), timedelta(days=-20_000)])
def test_a_servers_clock_does_not_matter_to_a_pinned_certificate(ahead, monkeypatch):
    class WrongClock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + ahead

    monkeypatch.setattr(certificate, "datetime", WrongClock)
    with make_endpoint(tls=True) as endpoint:
        assert trains(ticket_message(endpoint))
        authority = endpoint.issue("train", "0", 1).authority.encode()
    made = x509.load_pem_x509_certificate(authority)
    assert made.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)
    assert made.not_valid_after_utc.year == 9999


def ipv6_here() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not ipv6_here(), reason="no IPv6 here")


@pytest.mark.parametrize("host", ["localhost", pytest.param("::1", marks=needs_ipv6)])
@pytest.mark.parametrize("tls", [False, True])
def test_host_names_and_ipv6(host, tls):
    with make_endpoint(host=host, tls=tls) as endpoint:
        assert trains(ticket_message(endpoint))


def test_a_nodes_own_address_overrides_the_tickets():
    with make_endpoint(address="unreachable.invalid") as endpoint:
        assert endpoint.address.startswith("unreachable.invalid:")
        with pytest.raises(EndpointUnreachable, match=r"unreachable\.invalid"):
            trains(ticket_message(endpoint))
        own_host = node(**{"split-address": "127.0.0.1"})
        assert trains(ticket_message(endpoint), own_host)

        port = endpoint.address.rpartition(":")[2]
        own_host_and_port = node(**{"split-address": f"localhost:{port}"})
        message = ticket_message(endpoint, address="unreachable.invalid:9")
        assert trains(message, own_host_and_port)


def test_configs_that_cannot_work():
    with pytest.raises(ValueError, match="listens on every address"):
        EndpointConfig(host="::")
    with pytest.raises(ValueError, match=r"address is 'a:b:c'"):
        EndpointConfig(address="a:b:c")
    with pytest.raises(ValueError, match="port is 70000"):
        EndpointConfig(port=70000)
    for host in ("", "0", "127.1", "*", " 127.0.0.1", "[::1]", "127.0.0.1:80", "a/b"):
        with pytest.raises(ValueError, match=r"host is .*, wanted an IP address or"):
            EndpointConfig(host=host)
    with pytest.raises(ValueError, match="tls=False"):
        EndpointConfig(tls=False, certificate=Certificate.for_run())


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"split-tls": "yes"}, "split-tls is 'yes'"),
        ({"split-certificate": "/x.pem"}, "belong together"),
        ({"split-transport": "pigeon"}, "split-transport: transport is 'pigeon'"),
        ({"split-port": 70000}, "split-port: port is 70000"),
        ({"split-address": "x:99999"}, "split-address: address is 'x:99999'"),
        ({"split-address": "0.0.0.0"}, "split-address: .* every address of a machine"),
        ({"split-address": "0.0.0.0:9099"}, "split-address: .* every address of a"),
        ({"split-address": "::"}, "split-address: .* every address of a machine"),
        ({"split-address": "[::]:9099"}, "split-address: .* every address of a"),
        ({"split-address": "ml.example.org/"}, "split-address: .* the name of a host"),
        ({"split-address": "a b"}, "split-address: .* the name of a host"),
        ({"split-address": "10.0.0.1 "}, "split-address: .* the name of a host"),
        ({"split-host": "0.0.0.0"}, "split-host: .* listens on every address"),
        ({"split-max-sessions": 0}, "split-max-sessions: max_sessions is 0"),
        ({"split-idle-timeout-s": 0}, "split-idle-timeout-s: idle_timeout_s is 0"),
        ({"split-connection-idle-timeout-s": float("inf")}, "wanted at most 2147483$"),
        ({"split-connection-idle-timeout-s": 1e7}, "connection_idle_timeout_s is 1000"),
        ({"split-max-frame-bytes": 2**31}, "max_frame_bytes is .* most 2147483647$"),
        ({"split-idle-timeout-s": "60"}, "split-idle-timeout-s is '60', wanted float"),
        ({"split-idle-timeout-s": True}, "split-idle-timeout-s is True, wanted float"),
        ({"split-max-sessions": 2.5}, "split-max-sessions is 2.5, wanted int"),
        ({"split-port": "9099x"}, "split-port is '9099x', wanted int"),
        ({"split-host": 7}, "split-host is 7, wanted str"),
        ({"split-hosts": "::"}, r"split-hosts \(did you mean split-host\?\)"),
    ],
)
def test_run_configs_that_cannot_work(config, match):
    with pytest.raises(ValueError, match=match):
        EndpointConfig.from_run_config(config)


def test_a_run_config_gives_the_endpoint(tmp_path):
    pki = make_pki(tmp_path, "127.0.0.1")
    config = {
        "seed": 3,
        "split-host": "::1",
        "split-port": 9,
        "split-address": "",
        "split-max-steps": 7,
        "split-certificate": str(pki.chain),
        "split-private-key": str(pki.key),
        "split-ca-certificate": str(pki.ca),
    }
    made = EndpointConfig.from_run_config(config)
    assert made.host == "::1"
    assert made.port == 9
    assert made.address == ""
    assert made.encrypted
    assert made.limits == Limits(max_steps=7)
    assert made.certificate == Certificate.from_files(pki.chain, pki.key, pki.ca)
    assert EndpointConfig.from_run_config({"seed": 3}) == EndpointConfig()
    everywhere = {"split-host": "::", "split-address": "ml.example.org"}
    assert EndpointConfig.from_run_config(everywhere).encrypted
    with pytest.raises(ValueError, match=r"split-certificate: .* tls=False"):
        EndpointConfig.from_run_config({**config, "split-tls": "off"})
    config["split-private-key"] = "/nope"
    keys = "split-certificate, split-private-key, split-ca-certificate"
    with pytest.raises(ValueError, match=f"^{keys}: .* '/nope'$"):
        EndpointConfig.from_run_config(config)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(reconnect_timeout_s=60),
        EndpointConfig.from_run_config({"split-reconnect-timeout-s": 60}).limits,
    ],
    ids=["limits", "run-config"],
)
def test_seconds_may_be_whole(limits):
    config = EndpointConfig(limits=limits)
    with SplitEndpoint(
        make_endpoint().halves, cut_codec("float32"), config=config
    ) as endpoint:
        assert trains(ticket_message(endpoint))


def test_a_port_that_is_taken_is_named():
    with make_endpoint() as endpoint:
        port = int(endpoint.address.rpartition(":")[2])
        with (
            pytest.raises(OSError, match=f"127.0.0.1:{port}"),
            make_endpoint(port=port),
        ):
            pass


@needs_ipv6
@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
def test_a_name_of_which_one_address_is_taken_is_refused(taken):
    """Devices would reach whoever has the other, and both addresses are of localhost."""
    free = {"127.0.0.1": "::1", "::1": "127.0.0.1"}[taken]
    with make_endpoint(host=taken) as endpoint:
        port = int(endpoint.address.rpartition(":")[2])
        with (
            pytest.raises(OSError, match=f"cannot listen on localhost:{port}"),
            make_endpoint(host="localhost", port=port),
        ):
            pass
        # it has let go of the address that it had got
        with make_endpoint(host=free, port=port) as beside:
            assert trains(ticket_message(beside))


@needs_ipv6
def test_every_address_is_refused_where_one_is_taken():
    with make_endpoint(host="::1") as endpoint:
        port = int(endpoint.address.rpartition(":")[2])
        with (
            pytest.raises(OSError, match=rf"cannot listen on \[::\]:{port}"),
            make_endpoint(host="::", address="::1", port=port),
        ):
            pass


def test_a_name_that_nobody_knows_is_said():
    with (
        pytest.raises(OSError, match=r"cannot listen on unknown\.invalid:0"),
        make_endpoint(host="unknown.invalid"),
    ):
        pass


def test_whatever_goes_wrong_is_a_split_error():
    with make_endpoint(tls=True) as endpoint, pytest.raises(SplitError):
        trains(ticket_message(endpoint, authority="no certificate"))
