"""Bytes that are not one JSON object."""

import pytest

from expertfleet.gateway.http.errors import ApiError
from expertfleet.gateway.http.json_body import decode


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"5", b"{}{}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}',
        b"\xff\xfe", b'{"a": "\\ud800"}', b'{"\\udfff": 1}', b"[" * 100_000, b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_is_a_400(raw: bytes) -> None:
    with pytest.raises(ApiError, match="malformed JSON") as caught:
        decode(raw)
    assert caught.value.status == 400


def test_pairs_of_surrogates_are_characters() -> None:
    assert decode(b'{"a": "\\ud83d\\ude42"}') == {"a": "🙂"}
