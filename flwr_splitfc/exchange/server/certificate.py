"""The certificate by which the split endpoint proves itself to devices."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flwr_splitfc.exchange.protocol.tls import PINNED_NAME

_LIFETIME = timedelta(days=365)
_CLOCK_SKEW = timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """What the endpoint proves itself with, all in PEM.

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
            Path(chain).read_bytes(),
            Path(private_key).read_bytes(),
            Path(authority).read_bytes() if authority else b"",
        )
        certificate._check(chain, private_key, authority)
        return certificate

    def _check(
        self, chain: str | Path, private_key: str | Path, authority: str | Path | None
    ) -> None:
        try:
            leaf = x509.load_pem_x509_certificates(self.chain)[0]
        except (ValueError, IndexError) as error:
            raise ValueError(f"{chain} holds no PEM certificate: {error}") from error
        try:
            key = serialization.load_pem_private_key(self.private_key, None)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{private_key} holds no PEM private key without a password: {error}"
            ) from error
        if key.public_key() != leaf.public_key():
            raise ValueError(
                f"{private_key} is not the key of the certificate in {chain}"
            )
        if authority:
            try:
                x509.load_pem_x509_certificates(self.authority)
            except ValueError as error:
                raise ValueError(
                    f"{authority} holds no PEM certificate: {error}"
                ) from error

    @classmethod
    def for_run(cls) -> "Certificate":
        """A self-signed one, made anew: devices get it with their tickets and accept no other."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, PINNED_NAME)])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _LIFETIME)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(PINNED_NAME)]), critical=False
            )
            .add_extension(
                x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        chain = made.public_bytes(serialization.Encoding.PEM)
        private_key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return cls(chain, private_key, chain)


def server_credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """What the endpoint listens with."""
    return grpc.ssl_server_credentials([(certificate.private_key, certificate.chain)])
