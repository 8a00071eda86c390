"""The certificate by which the split endpoint proves itself to devices."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificatePublicKeyTypes,
    PrivateKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flwr_splitfc.exchange.protocol.tls import PINNED_NAME

# The run's own certificate is known by its bytes, so no clock has a say, neither the
# server's nor a device's. The end is X.509's own for none.
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)

# of the machine that made a certificate a moment ago
_CLOCK_SKEW = timedelta(minutes=5)

# with others gRPC listens, and no device's handshake succeeds, or it does not listen
_CURVES = (ec.SECP256R1, ec.SECP384R1)


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
        What devices check the chain with; default: the authorities that come with
        gRPC, or those in the file that its variable
        ``GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`` names on the device.
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
            If a file holds no PEM of its kind, or the key is not the certificate's, or
            of a kind with which devices cannot connect, or the certificate or one that
            signed it is not valid now.
        OSError
            If a file cannot be read.
        """
        certificates = _read_certificates(chain)
        key = _read_private_key(private_key)
        authorities = _read_certificates(authority) if authority else []
        public_key = certificates[0].public_key()
        if key.public_key() != public_key:
            raise ValueError(
                f"{private_key} is not the key of the certificate in {chain}"
            )
        _check_kind(public_key, chain)
        _check_dates(certificates, authorities)
        # as they were read: gRPC refuses what may stand before a PEM, such as a mark
        # of the byte order
        return cls(_pem_of(certificates), _pem_of_key(key), _pem_of(authorities))

    @classmethod
    def for_run(cls) -> "Certificate":
        """Make a self-signed certificate.

        Devices get it with their tickets, and accept no other.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        chain = _self_signed(key).public_bytes(serialization.Encoding.PEM)
        return cls(chain, _pem_of_key(key), authority=chain)


def _read_certificates(path: str | Path) -> list[x509.Certificate]:
    """Return a file's certificates; the server's own is the first of a chain."""
    try:
        return x509.load_pem_x509_certificates(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} holds no PEM certificate: {error}") from error


def _read_private_key(path: str | Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(Path(path).read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} holds no PEM private key without a password: {error}"
        ) from error


def _check_kind(key: CertificatePublicKeyTypes, path: str | Path) -> None:
    if isinstance(key, rsa.RSAPublicKey):
        return
    kind = type(key).__name__.removesuffix("PublicKey")
    if isinstance(key, ec.EllipticCurvePublicKey):
        if isinstance(key.curve, _CURVES):
            return
        kind = key.curve.name
    raise ValueError(
        f"the key of the certificate in {path} is of the kind {kind}, with which "
        "devices cannot connect: wanted RSA, or an elliptic curve, P-256 or P-384"
    )


def _check_dates(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> None:
    """Refuse a certificate, or one that signed it, with dates that no device takes.

    Each device would try for ten seconds, and fail. It takes the first signer that it
    finds, among the authorities before the chain.
    """
    certificate, *others = chain
    _check_valid_now(certificate)
    # without authorities, devices may know a younger one of the same name higher up
    unused = [*authorities, *(others if authorities else others[:1])]
    while certificate.issuer != certificate.subject:
        if certificate in authorities:
            # the chain is not needed any more
            unused = [each for each in unused if each in authorities]
        signers = [each for each in unused if _signed(each, certificate)]
        if not signers:
            return
        certificate = signers[0]
        _check_valid_now(certificate)
        unused.remove(certificate)


def _signed(signer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(signer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _check_valid_now(certificate: x509.Certificate) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    if not begins - _CLOCK_SKEW <= now <= ends:
        raise ValueError(
            f"the certificate of {certificate.subject.rfc4514_string()!r} is valid "
            f"from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, and not now"
        )


def _pem_of(certificates: Sequence[x509.Certificate]) -> bytes:
    encoding = serialization.Encoding.PEM
    return b"".join(each.public_bytes(encoding) for each in certificates)


def _pem_of_key(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


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
