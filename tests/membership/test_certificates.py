"""What is wrong with three files is found without any peer; that what is right is accepted by peers is test_wire.py's."""

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from expertfleet.cluster.commands.config import FleetConfig
from expertfleet.cluster.commands.head import HeadConfig
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.membership.certificates import find_fault
from expertfleet.membership.security import WireSettings

Certify = Callable[..., Path]


def fault_of(folder: Path) -> str:
    return find_fault(folder / "ca.crt", folder / "tls.crt", folder / "tls.key", "expertfleet")


def write(folder: Path, authority: trustme.CA, issued: trustme.LeafCert) -> Path:
    folder.mkdir(exist_ok=True)
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    issued.private_key_pem.write_to_path(str(folder / "tls.key"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
    return folder


def days(number: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=number)


def test_what_one_authority_issued_for_the_name_is_right(tls_dir: Path) -> None:
    assert fault_of(tls_dir) == ""


@pytest.mark.parametrize("names", [("somebody",), ("10.0.0.3",), ("expertfleet.example.org",), ("*.expertfleet",)])
def test_a_certificate_of_another_name_is_told_which_it_must_have(tmp_path: Path, names: tuple[str, ...]) -> None:
    authority = trustme.CA()
    told = fault_of(write(tmp_path / "tls", authority, authority.issue_cert(*names)))
    assert told.startswith(f"{tmp_path / 'tls' / 'tls.crt'}: ")
    assert told.endswith("issue one with the subject alternative name DNS:expertfleet")


def test_one_of_several_names_is_enough(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("10.0.0.3", "expertfleet", "fleet.example.org")
    assert fault_of(write(tmp_path / "tls", authority, issued)) == ""


@pytest.mark.parametrize(
    ("since", "until", "message"),
    [
        (-9, -1, "certificate has expired; renew it"),
        (1, 9, "certificate is not yet valid; compare this machine's clock"),
    ],
)
def test_a_certificate_out_of_its_time_is_told(tmp_path: Path, since: float, until: float, message: str) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("expertfleet", not_before=days(since), not_after=days(until))
    assert message in fault_of(write(tmp_path / "tls", authority, issued))


def test_a_certificate_of_another_authority_is_told(tmp_path: Path, certify: Certify) -> None:
    folder = certify(tmp_path / "tls", trustme.CA())
    trustme.CA().cert_pem.write_to_path(str(folder / "ca.crt"))
    told = fault_of(folder)
    assert f"it is not of the authority in {folder / 'ca.crt'}" in told


def test_a_key_of_another_certificate_is_told(tmp_path: Path, certify: Certify) -> None:
    authority = trustme.CA()
    folder = certify(tmp_path / "tls", authority)
    authority.issue_cert("expertfleet").private_key_pem.write_to_path(str(folder / "tls.key"))
    assert fault_of(folder).startswith(f"{folder / 'tls.key'}: is not the key of {folder / 'tls.crt'}")


@pytest.mark.parametrize("name", ["ca.crt", "tls.crt", "tls.key"])
@pytest.mark.parametrize(
    "content", [b"", b"something else\n", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_file_that_holds_something_else_is_named(tls_dir: Path, name: str, content: bytes) -> None:
    (tls_dir / name).write_bytes(content)
    told = fault_of(tls_dir)
    assert str(tls_dir / name) in told
    assert "\n" not in told


def test_a_key_with_a_password_is_told_and_nobody_is_asked_for_it(tls_dir: Path) -> None:
    key = serialization.load_pem_private_key((tls_dir / "tls.key").read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tls_dir / "tls.key").write_bytes(locked)
    assert "are no certificate and key in PEM without a password" in fault_of(tls_dir)


def test_every_role_finds_it_before_anything_starts(tmp_path: Path, certify: Certify) -> None:
    wrong = certify(tmp_path / "tls", trustme.CA(), "somebody")
    token = "a token of these tests alone"
    for make in (
        lambda: WireSettings(tls_dir=wrong),
        lambda: FleetConfig(tmp_path, tls_dir=wrong),
        lambda: ExpertConfig(tmp_path, tls_dir=wrong),
        lambda: HeadConfig(tmp_path, tmp_path, "10.0.0.2", tls_dir=wrong, cluster_token=token),
    ):
        with pytest.raises(ValueError, match=r"^tls_dir: .*tls\.crt: .*DNS:expertfleet$"):
            make()


def test_a_file_that_may_not_be_read_is_named(tls_dir: Path) -> None:
    (tls_dir / "tls.key").unlink()
    (tls_dir / "tls.key").mkdir()
    with pytest.raises(ValueError, match=r"^tls_dir: .*tls\.key: Is a directory; the directory must hold"):
        WireSettings(tls_dir=tls_dir)
