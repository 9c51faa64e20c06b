"""``expertfleet certs``: an authority for trials and one certificate that all members of a fleet share.

Knows nothing of who reads the files. A directory without an authority gets one; where there is one, the certificate is issued anew, which
members that serve take up. The names of the files are those of ``--tls-dir``, which is also a Kubernetes secret's.
"""

import datetime
import os
from pathlib import Path

import trustme

from ...membership.security import MEMBER_NAME, TLS_FILES
from ..errors import ClusterError

_AUTHORITY_KEY = "ca.key"
_MOST_DAYS = 3650


def issue(directory: Path, days: int) -> str:
    """Writes the files for ``days`` days; returns what was done, for people. Raises ClusterError, and then nothing was written."""
    if not 1 <= days <= _MOST_DAYS:
        raise ClusterError(f"--days: {days} is not in 1..{_MOST_DAYS}")
    authority_file, certificate_file, key_file = (directory / name for name in TLS_FILES)
    authority_key = directory / _AUTHORITY_KEY
    if authority_file.exists() and not authority_key.exists():
        raise ClusterError(
            f"{authority_file} is another authority's: {authority_key} is not there; give another directory"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_new = not authority_key.exists()
        authority = trustme.CA() if is_new else _read_authority(authority_file, authority_key)
        issued = authority.issue_cert(
            MEMBER_NAME, not_after=datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        )
        if is_new:
            _write(authority_key, authority.private_key_pem.bytes(), 0o600)
            _write(authority_file, authority.cert_pem.bytes(), 0o644)
        _write(key_file, issued.private_key_pem.bytes(), 0o600)
        _write(certificate_file, b"".join(part.bytes() for part in issued.cert_chain_pems), 0o644)
    except OSError as error:
        raise ClusterError(f"{error.filename or directory}: {error.strerror}") from error
    done = "made an authority and a certificate" if is_new else "issued the certificate anew"
    return (
        f"{directory}: {done}, good for {days} days. Give every member ca.crt, tls.crt and tls.key with --tls-dir; "
        f"{_AUTHORITY_KEY} stays here. This is for trials: use your own authority for a network that you do not own"
    )


def _read_authority(certificate: Path, key: Path) -> trustme.CA:
    try:
        return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
    except (ValueError, TypeError) as error:
        raise ClusterError(f"{certificate} and {key} are no authority's certificate and key: {error}") from error


def _write(file: Path, data: bytes, mode: int) -> None:
    """As a whole: a member that reads meanwhile finds the old file or the new one."""
    new = file.with_name(f".{file.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as out:
        out.write(data)
    new.replace(file)
