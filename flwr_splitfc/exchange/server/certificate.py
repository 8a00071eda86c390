"""The certificate by which the split endpoint proves itself to devices."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flwr_splitfc.exchange.protocol.tls import PINNED_NAME

# The run's own certificate is known by its bytes, so no clock has a say, neither the
# server's nor a device's. The end is X.509's own for none.
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, all in PEM.

    Parameters
    ----------
    chain : bytes
        The server's certificate, and those between it and the authority's.
    private_key : bytes
        Never logged, printed or sent.
    authority : bytes, optional
        What devices check the chain with; default: what their systems trust.
    """

    chain: bytes
    private_key: bytes = field(repr=False)
    authority: bytes = b""

    @classmethod
    def from_files(
        cls,
        chain: str | Path,
        private_key: str | Path,
        authority: str | Path | None = None,
    ) -> "Certificate":
        """Read the three from PEM files.

        Raises
        ------
        ValueError
            If a file holds no PEM of its kind, or the key is not the certificate's.
        OSError
            If a file cannot be read.
        """
        certificate = cls(
            chain=Path(chain).read_bytes(),
            private_key=Path(private_key).read_bytes(),
            authority=Path(authority).read_bytes() if authority else b"",
        )
        leaf = _load_certificate(certificate.chain, chain)
        key = _load_private_key(certificate.private_key, private_key)
        if key.public_key() != leaf.public_key():
            raise ValueError(
                f"{private_key} is not the key of the certificate in {chain}"
            )
        if authority:
            _load_certificate(certificate.authority, authority)
        return certificate

    @classmethod
    def for_run(cls) -> "Certificate":
        """Make a self-signed certificate.

        Devices get it with their tickets, and accept no other.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        chain = _self_signed(key).public_bytes(serialization.Encoding.PEM)
        private_key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return cls(chain, private_key, authority=chain)


def _load_certificate(pem: bytes, path: str | Path) -> x509.Certificate:
    """Return the first certificate of a file, the server's own in a chain."""
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} holds no PEM certificate: {error}") from error


def _load_private_key(pem: bytes, path: str | Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} holds no PEM private key without a password: {error}"
        ) from error


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, PINNED_NAME)])
    host_names = x509.SubjectAlternativeName([x509.DNSName(PINNED_NAME)])
    no_authority = x509.BasicConstraints(ca=False, path_length=None)
    for_servers = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGINNING)
        .not_valid_after(_NO_END)
        .add_extension(host_names, critical=False)
        .add_extension(no_authority, critical=True)
        .add_extension(for_servers, critical=False)
        .sign(key, hashes.SHA256())
    )


def server_credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Return the credentials with which the endpoint listens."""
    return grpc.ssl_server_credentials([(certificate.private_key, certificate.chain)])
