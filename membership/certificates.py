"""Whether three files of TLS go together and would be accepted by a member that has the same authority.

Knows nothing of who reads them. One end of a connection is made of them, the other end too, and the two shake hands in memory: what
they say against each other is what peers would say, before there is any peer.
"""

import ssl
from pathlib import Path

_MOST_ROUNDS = 10


def find_fault(authority: Path, certificate: Path, key: Path, name: str) -> str:
    """What is wrong with them, and what to do, in one line; empty if nothing is."""
    try:
        server, client = (
            _context(protocol, authority, certificate, key)
            for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
        )
    except _Unusable as error:
        return str(error)
    try:
        _shake_hands(server, client, name)
    except ssl.SSLCertVerificationError as error:
        return f"{certificate}: {error.verify_message.rstrip('.')}{_remedy(error, authority, name)}"
    except ssl.SSLError as error:
        return f"{certificate}: cannot be used ({error.reason or error})"
    return ""


class _Unusable(Exception):
    pass


def _context(protocol: int, authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(authority)
    except (ssl.SSLError, OSError) as error:
        raise _Unusable(f"{authority}: holds no certificate of an authority ({_reason(error)})") from error
    if not context.cert_store_stats()["x509_ca"] and not context.cert_store_stats()["x509"]:
        raise _Unusable(f"{authority}: holds no certificate of an authority")
    try:
        # NOTE: without an answer at hand, OpenSSL would ask the terminal for a key's password.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if "MISMATCH" in (error.reason or ""):
            raise _Unusable(
                f"{key}: is not the key of {certificate}; give the two that were issued together"
            ) from error
        what = f"{certificate} and {key}: are no certificate and key in PEM without a password ({_reason(error)})"
        raise _Unusable(what) from error
    except OSError as error:
        raise _Unusable(f"{certificate} and {key}: cannot be read ({_reason(error)})") from error
    return context


def _reason(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    return (reason or error.strerror or str(error)).replace("_", " ").lower()


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Raises ssl.SSLError with what either end has against the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(_MOST_ROUNDS):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
        if not ends:
            return
    raise ssl.SSLError("the handshake does not come to an end")


def _remedy(error: ssl.SSLCertVerificationError, authority: Path, name: str) -> str:
    told = error.verify_message.lower()
    if "hostname" in told or "mismatch" in told:
        return f"; members' certificates name {name}: issue one with the subject alternative name DNS:{name}"
    if "expired" in told:
        return "; renew it"
    if "not yet valid" in told:
        return "; compare this machine's clock with that of who issued it"
    if "purpose" in told:
        return "; issue one for servers and for clients: every member is both"
    if "issuer" in told or "self-signed" in told or "self signed" in told or "signature" in told:
        return f"; it is not of the authority in {authority}: give the certificate of the one that issued it"
    return ""
