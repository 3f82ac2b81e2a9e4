"""TLS contexts from files, for both sides of the relay, renewed when the files are.

Both offer HTTP/2 only (ALPN ``h2``) and nothing below TLS 1.2; the ciphers are OpenSSL's own choice.
"""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from relay_service.core.policy import UpstreamTls
from relay_service.wire.sockets import offer_h2

log = logging.getLogger(__name__)


class TlsError(Exception):
    """A certificate, a key or an authority cannot be used; the text names the file."""


class RenewedContext:
    """A context whose files are loaded again when they change; new handshakes use what was loaded last.

    An authority that was taken out of its file is trusted until the next start: OpenSSL can only add.
    State: the context, and when each file was last changed.
    """

    def __init__(
        self, make: Callable[[], ssl.SSLContext], load: Callable[[ssl.SSLContext], None], *files: Path | None
    ) -> None:
        """``make`` gives an empty context, ``load`` fills it from ``files``. Raises `TlsError`."""
        self._make = make
        self._load = load
        self._files = tuple(file for file in files if file is not None)
        self._changed_at = self._look()
        self.context = make()
        load(self.context)

    def renew(self) -> bool:
        """Load the files again if they changed; True when they were. What cannot be used is said and left."""
        changed_at = self._look()
        if changed_at == self._changed_at:
            return False
        self._changed_at = changed_at
        try:
            # First into a context of its own: half of a bad pair must not get into the one in use.
            self._load(self._make())
            self._load(self.context)
        except TlsError as error:
            log.warning("%s; what was loaded before stays in use", error)
            return False
        return True

    def _look(self) -> tuple[int, ...]:
        return tuple(_changed_at(file) for file in self._files)


def listening(certificate: Path, key: Path, client_ca: Path | None) -> RenewedContext:
    """For the callers' side; with ``client_ca`` a caller must present a certificate that it signed.

    Raises `TlsError`.
    """

    def make() -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_SERVER)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def load(context: ssl.SSLContext) -> None:
        _present(context, certificate, key)
        if client_ca is not None:
            _trust(context, client_ca)

    return RenewedContext(make, load, certificate, key, client_ca)


def calling(policy: UpstreamTls) -> RenewedContext:
    """For an upstream: its certificate is checked against ``ca``, or the system's authorities without one.

    Raises `TlsError`.
    """
    authority, certificate, key = (_path(name) for name in (policy.ca, policy.certificate, policy.key))

    def load(context: ssl.SSLContext) -> None:
        if authority is not None:
            _trust(context, authority)
        else:
            context.load_default_certs()
        if certificate is not None and key is not None:
            _present(context, certificate, key)

    return RenewedContext(lambda: _context(ssl.PROTOCOL_TLS_CLIENT), load, authority, certificate, key)


def _path(name: str) -> Path | None:
    return Path(name) if name else None


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return offer_h2(context)


def _present(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        why = error.reason or "it is no PEM file that OpenSSL can read"
        raise TlsError(f"the certificate {certificate} and the key {key} cannot be used: {why}") from error
    except OSError as error:
        raise TlsError(_unreadable(error, certificate, key)) from error


def _trust(context: ssl.SSLContext, authority: Path) -> None:
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        why = error.reason or "it holds no certificate in PEM form"
        raise TlsError(f"the authority {authority} cannot be used: {why}") from error
    except OSError as error:
        raise TlsError(_unreadable(error, authority)) from error


def _no_password() -> str:
    """OpenSSL would ask on the terminal, and wait."""
    raise TlsError("the key is encrypted: give one that is not, readable by this process only")


def _unreadable(error: OSError, *files: Path) -> str:
    """OpenSSL does not say which of the files it was."""
    for file in files:
        try:
            file.open("rb").close()
        except OSError as its_error:
            return f"{file} cannot be read: {its_error.strerror}"
    return f"{' and '.join(map(str, files))} cannot be read: {error.strerror}"


def _changed_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
