"""Certificates and keys for a SuperLink with TLS and SuperNodes that authenticate themselves."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_PEM = serialization.Encoding.PEM
_PLAIN = serialization.NoEncryption()


class Pki(NamedTuple):
    """Files: the CA's certificate, the server's and its key, and a private key per node (with ``.pub`` beside)."""

    ca: Path
    chain: Path
    key: Path
    nodes: list[Path]


def make_pki(folder: Path, host: str = "127.0.0.1", nodes: int = 0) -> Pki:
    """A CA, a certificate for `host`, and as many node keys."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    try:
        san: x509.GeneralName = x509.IPAddress(ip_address(host))
    except ValueError:
        san = x509.DNSName(host)
    pki = Pki(
        folder / "ca.pem",
        folder / "chain.pem",
        folder / "key.pem",
        [folder / f"node-{i}" for i in range(nodes)],
    )
    pki.ca.write_bytes(
        _certificate(
            "test CA", ca_key, ca_key, x509.BasicConstraints(ca=True, path_length=None)
        )
    )
    pki.chain.write_bytes(
        _certificate("server", key, ca_key, x509.SubjectAlternativeName([san]))
    )
    pki.key.write_bytes(
        key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _PLAIN)
    )
    for file in pki.nodes:
        node = ec.generate_private_key(ec.SECP384R1())
        file.write_bytes(
            node.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, _PLAIN)
        )
        public = node.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        file.with_suffix(".pub").write_bytes(public)
    return pki


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    ca_key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> bytes:
    subject, issuer = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
        for text in (name, "test CA")
    )
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer, subject, key.public_key(), x509.random_serial_number()
    )
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(
        now + timedelta(days=1)
    )
    return (
        builder.add_extension(extension, critical=False)
        .sign(ca_key, hashes.SHA256())
        .public_bytes(_PEM)
    )
