import stat
from pathlib import Path

import pytest

from expertfleet.cluster.__main__ import main
from expertfleet.cluster.commands.certs import issue
from expertfleet.cluster.errors import ClusterError
from expertfleet.membership.certificates import find_fault
from expertfleet.membership.security import MEMBER_NAME, TLS_FILES, WireSecurity


def test_the_directory_is_one_that_members_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "new" / "tls"
    assert main(["certs", str(directory)]) == 0
    assert "made an authority and a certificate, good for 365 days" in capsys.readouterr().out
    WireSecurity(directory)  # raises on a fault
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "tls.crt": 0o644, "tls.key": 0o600}


def test_a_second_run_renews_under_the_same_authority(tmp_path: Path) -> None:
    issue(tmp_path, 30)
    before = {name: (tmp_path / name).read_bytes() for name in TLS_FILES}
    assert "issued the certificate anew, good for 60 days" in issue(tmp_path, 60)
    after = {name: (tmp_path / name).read_bytes() for name in TLS_FILES}
    assert [name for name in TLS_FILES if before[name] == after[name]] == ["ca.crt"]
    assert find_fault(*(tmp_path / name for name in TLS_FILES), MEMBER_NAME) == ""


def test_two_directories_do_not_trust_each_other(tmp_path: Path) -> None:
    issue(tmp_path / "a", 30)
    issue(tmp_path / "b", 30)
    assert find_fault(tmp_path / "a" / "ca.crt", tmp_path / "b" / "tls.crt", tmp_path / "b" / "tls.key", MEMBER_NAME)


def test_another_authority_s_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("theirs")
    with pytest.raises(ClusterError, match=r"ca\.crt is another authority's: .*ca\.key is not there"):
        issue(tmp_path, 30)
    (tmp_path / "ca.key").write_text("theirs, too")
    with pytest.raises(ClusterError, match="are no authority's certificate and key"):
        issue(tmp_path, 30)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ca.crt", "ca.key"]


@pytest.mark.parametrize("days", [0, 3651])
def test_days_out_of_range_are_refused(tmp_path: Path, days: int) -> None:
    with pytest.raises(ClusterError, match=rf"--days: {days} is not in 1\.\.3650"):
        issue(tmp_path, days)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="file: File exists"):
        issue(tmp_path / "file", 30)
