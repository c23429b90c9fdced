"""Nobody's signature but a configured secret's is taken, and whatever comes in, the answer is yes or `SignatureError`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import subprocess
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from receiver import sign, verify
from receiver.core.signature import TOLERANCE, Verifier
from receiver.errors import SignatureError

SECRET = "whsec_test_0123456789abcdef"
NOW = 1_712_275_200
BODY = b'{"event":"job.completed","jobId":"job_9fba2"}'
SIGNATURE = "sha256=90f67a758921d2ff73c01cb7f30e4c65d18acbeaffb9d650771e596c48d7d32b"

# Made by two signers that are not ours; both gave the same for each.
#   printf '%s.%s' "$TIMESTAMP" "$BODY" | openssl dgst -sha256 -hmac "$SECRET"                                (OpenSSL 3.0.19)
#   crypto.createHmac("sha256", secret).update(`${timestamp}.`).update(body).digest("hex")                    (Node 20.20.2)
VECTORS = {
    "a delivery": (SECRET, NOW, BODY, SIGNATURE.removeprefix("sha256=")),
    "no body": (SECRET, NOW, b"", "2d7cb7be259d87e3a37fe0df89413a0bbd5a1b6e4c8056ef38942741128184d5"),
    "not text": (SECRET, NOW, b"\x00\xff\x7f\r\n", "8a6a3b50df785aa1c70db5b46b2d1e9bc9e737d0260ec6bef07b3d1dfdc834db"),
    "a secret that is not ASCII": (
        "ключ от ящика, 鍵",
        NOW,
        '{"note":"żółw — 亀"}'.encode(),
        "704f563ce07208eec7aed1d5ee1b84fe16b5ecf8bc6e239a37c36c554188a08e",
    ),
    "the longest secret, the first second": (
        "k" * 256,
        0,
        b"x",
        "8c948962f257de8da003a64d4de60bf2d410597c2e63b3a17185b333ce7dc66e",
    ),
    "Node's JSON": (
        "0123456789abcdef",
        1_893_456_000,
        '{"jobId":"job_n0de","type":"job.failed","error":"😀"}'.encode(),
        "2bacde039cb7ac0ff49640004cfe7be4cd58b4a0552dbf7bc2630ae75d35394f",
    ),
    "70,000 bytes, the last second of 12 digits": (
        "0123456789abcdef",
        999_999_999_999,
        b"a" * 70_000,
        "909afbe12f873226bbc30e61b4d489a8cdd717c63e5fd1548c85e05d952d0186",
    ),
}


def check(
    body: Any = BODY,
    *,
    timestamp: Any = str(NOW),
    signature: Any = SIGNATURE,
    secrets: Any = SECRET,
    now: Any = NOW,
    tolerance: Any = TOLERANCE,
) -> None:
    verify(body, timestamp=timestamp, signature=signature, secrets=secrets, now=now, tolerance=tolerance)


def refusal(body: Any = BODY, **claims: Any) -> str:
    """Why it is refused; fails if it is not, or if anything but `SignatureError` comes out."""
    with pytest.raises(SignatureError) as caught:
        check(body, **claims)
    return caught.value.reason


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
def test_what_independent_signers_signed_is_accepted(vector: tuple[str, int, bytes, str]) -> None:
    secret, timestamp, body, digest = vector
    check(body, timestamp=str(timestamp), signature=f"sha256={digest}", secrets=secret, now=timestamp)


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
def test_we_sign_as_independent_signers_do(vector: tuple[str, int, bytes, str]) -> None:
    secret, timestamp, body, digest = vector
    assert sign(body, timestamp=timestamp, secret=secret) == f"sha256={digest}"


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096])
def test_what_openssl_signs_just_now_is_accepted(size: int) -> None:
    """Live: the vectors above cannot go stale unnoticed. A machine without OpenSSL's command line cannot run this suite."""
    body, key = secrets.token_bytes(size), secrets.token_urlsafe(24)
    command = ["openssl", "dgst", "-sha256", "-hmac", key, "-r"]
    told = subprocess.run(command, input=f"{NOW}.".encode() + body, capture_output=True, check=True)
    check(body, signature=f"sha256={told.stdout.split()[0].decode()}", secrets=key)


# -- the signature -----------------------------------------------------------------------------------------------------------


def test_a_signature_of_the_empty_key_is_refused() -> None:
    digest = hmac.new(b"", f"{NOW}.".encode() + BODY, hashlib.sha256).hexdigest()
    assert refusal(signature=f"sha256={digest}") == "mismatch"


@pytest.mark.parametrize("length", range(len(SIGNATURE)))
def test_every_proper_prefix_of_the_signature_is_refused(length: int) -> None:
    assert refusal(signature=SIGNATURE[:length]) == "malformed"


@pytest.mark.parametrize("more", ["0", "a", " ", "\n", "\r\n", "\x00", ","])
def test_one_character_more_is_refused(more: str) -> None:
    assert refusal(signature=SIGNATURE + more) == "malformed"
    assert refusal(signature=more + SIGNATURE) == "malformed"


_HEX = SIGNATURE.removeprefix("sha256=")


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "sha256=",
        "sha256",
        _HEX,
        f"sha256={_HEX.upper()}",
        f"SHA256={_HEX}",
        f"Sha256={_HEX}",
        f"sha256= {_HEX}",
        f"sha256:{_HEX}",
        f"v1={_HEX}",
        f"sha1={_HEX}",
        f"sha512={_HEX}",
        "sha1=" + hmac.new(SECRET.encode(), f"{NOW}.".encode() + BODY, "sha1").hexdigest(),
        "sha256=" + base64.b64encode(bytes.fromhex(_HEX)).decode(),
        f"{SIGNATURE},{SIGNATURE}",
        f"{SIGNATURE}, sha256={'0' * 64}",
        f"sha256={'0' * 64},{SIGNATURE}",
        f"sha256={_HEX[:-1]}\xe9",
        f"sha256={_HEX[:-1]}\u0661",  # an Arabic digit one
        f"sha256={_HEX[:-1]}\uff11",  # a full-width one
        f"sha256={_HEX[:-1]}\ud800",
        '"' + SIGNATURE + '"',
    ],
)
def test_the_signature_has_one_accepted_spelling(signature: str) -> None:
    assert refusal(signature=signature) == "malformed"


# -- what is signed ----------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_the_body_is_refused() -> None:
    verifier = Verifier(SECRET)
    for bit in range(len(BODY) * 8):
        body = bytearray(BODY)
        body[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            verifier.verify(bytes(body), timestamp=str(NOW), signature=SIGNATURE, now=NOW)


@pytest.mark.parametrize("header", ["timestamp", "signature"])
def test_every_flipped_bit_of_a_header_is_refused(header: str) -> None:
    verifier, claims = Verifier(SECRET), {"timestamp": str(NOW), "signature": SIGNATURE}
    good = claims[header].encode()
    for bit in range(len(good) * 8):
        raw = bytearray(good)
        raw[bit // 8] ^= 1 << bit % 8
        # As wide a tolerance as there is, so that it is the signature that catches a changed time.
        with pytest.raises(SignatureError):
            verifier.verify(BODY, **claims | {header: raw.decode("latin-1")}, now=NOW, tolerance=1e300)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        BODY + b"\n",
        b"\xef\xbb\xbf" + BODY,
        json.dumps(json.loads(BODY)).encode(),
        BODY.decode().encode("utf-16"),
        BODY[:-1],
        str(NOW).encode() + b"." + BODY,
    ],
    ids=["none", "newline", "BOM", "re-serialised", "UTF-16", "truncated", "with the timestamp"],
)
def test_the_body_is_signed_as_its_bytes(body: bytes) -> None:
    assert refusal(body) == "mismatch"


def test_digits_cannot_move_between_timestamp_and_body() -> None:
    """What is signed has one reading: the stop after the timestamp is the first one."""
    signature = sign(b"5.rest", timestamp="17122752", secret=SECRET)
    assert refusal(b"rest", timestamp="17122752.5", signature=signature) == "malformed"


@given(body=st.binary(max_size=300), secret=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
def test_what_we_sign_we_accept(body: bytes, secret: str) -> None:
    check(body, signature=sign(body, timestamp=NOW, secret=secret), secrets=secret)


@given(body=st.binary(max_size=100), other=st.binary(max_size=100))
def test_a_signature_is_for_one_body(body: bytes, other: bytes) -> None:
    signature = sign(body, timestamp=NOW, secret=SECRET)
    if body == other:
        check(other, signature=signature)
    else:
        assert refusal(other, signature=signature) == "mismatch"


# -- the timestamp -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        " ",
        f"+{NOW}",
        f"-{NOW}",
        "-1",
        f"{NOW}_0",
        "1_712_275_200",
        "1e9",
        "nan",
        "inf",
        "Infinity",
        f"{NOW}.0",
        f" {NOW}",
        f"{NOW} ",
        f"{NOW}\n",
        f"0{NOW}",
        "00",
        "0x660f3a80",
        f"{NOW}{NOW % 1000:03}",  # milliseconds
        "1" * 13,
        "9" * 5000,
        "٣٠٠",  # int() would read these
        "\uff11\uff12",
        "\ud800",
        "\xe9",
        "2024-04-05T00:00:00Z",
    ],
)
def test_the_timestamp_has_one_accepted_spelling(timestamp: str) -> None:
    """Each is genuinely signed where it can be, so that it is the form that is refused."""
    signed = f"{timestamp}.".encode("utf-8", "surrogatepass") + BODY
    signature = f"sha256={hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()}"
    assert refusal(timestamp=timestamp, signature=signature) == "malformed"


@pytest.mark.parametrize("tolerance", [0, 1, 300, 86_400, 0.5])
def test_the_tolerance_is_exact_in_both_directions(tolerance: float) -> None:
    last = int(tolerance)
    for now in (NOW + last, NOW - last, NOW):
        check(now=now, tolerance=tolerance)
    assert refusal(now=NOW + last + 1, tolerance=tolerance) == "stale"
    assert refusal(now=NOW - last - 1, tolerance=tolerance) == "future"


def test_the_tolerance_is_300_seconds_unless_told() -> None:
    for now in (NOW + 300, NOW - 300):
        verify(BODY, timestamp=str(NOW), signature=SIGNATURE, secrets=SECRET, now=now)
    for now in (NOW + 301, NOW - 301):
        with pytest.raises(SignatureError):
            verify(BODY, timestamp=str(NOW), signature=SIGNATURE, secrets=SECRET, now=now)


def test_a_fraction_of_a_second_does_not_count() -> None:
    """The sender's timestamp is in whole seconds, so ours is too."""
    check(now=NOW + 300.999)
    assert refusal(now=NOW + 301.0) == "stale"


def test_a_forgery_is_not_told_that_it_is_late() -> None:
    """`stale` and `future` mean genuinely signed: they are what a warning of a skewed clock goes by."""
    assert refusal(signature=f"sha256={'0' * 64}", now=NOW + 10_000) == "mismatch"


# -- the secrets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 2])
def test_any_of_several_secrets_may_have_signed(position: int) -> None:
    others = ["a retired but listed one", "the next one, not in use"]
    check(secrets=[*others[:position], SECRET, *others[position:]])


def test_a_secret_no_longer_listed_is_refused() -> None:
    assert refusal(secrets=["the current one, in use", "the next one, not in use"]) == "mismatch"


def test_a_lone_string_is_one_secret() -> None:
    """Not one for each of its characters: those would be guessed at once."""
    check(secrets=SECRET)
    signature = sign(BODY, timestamp=NOW, secret=SECRET[0])
    assert refusal(signature=signature) == "mismatch"


def test_secrets_may_come_from_any_iterable() -> None:
    check(secrets=(secret for secret in ["another one altogether", SECRET]))


@pytest.mark.parametrize(
    "unusable",
    [None, [], (), "", [""], [SECRET, ""], [None], 7, [7], SECRET.encode(), [SECRET.encode()], "\ud800" * 16, [SECRET, "\udfff"]],
    ids=repr,
)
def test_without_a_usable_secret_nothing_is_accepted(unusable: Any) -> None:
    assert refusal(secrets=unusable) == "no_secret"
    with pytest.raises(SignatureError):
        Verifier(unusable)


def test_a_verifier_may_be_used_again_and_again() -> None:
    verifier = Verifier([SECRET])
    for _ in range(3):
        verifier.verify(BODY, timestamp=str(NOW), signature=SIGNATURE, now=NOW)
        with pytest.raises(SignatureError):
            verifier.verify(BODY + b" ", timestamp=str(NOW), signature=SIGNATURE, now=NOW)


# -- whatever comes in -------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(), max_size=90)  # surrogates too
ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=20) | st.lists(st.integers(), max_size=3)
TIMES = st.floats() | st.integers() | st.sampled_from([float(NOW), 1e308, -1e308, 10**400, -(10**5000)])


@given(
    body=st.binary(max_size=100),
    timestamp=TEXT | st.from_regex(r"\A[0-9]{1,13}\Z"),
    signature=TEXT | st.from_regex(r"\Asha256=[0-9a-f]{63,65}\Z"),
    keys=st.lists(TEXT, max_size=3) | TEXT,
    now=TIMES,
    tolerance=st.floats() | st.integers(),
)
def test_nothing_unsigned_passes_and_nothing_but_a_signature_error_escapes(
    body: bytes, timestamp: str, signature: str, keys: Any, now: float, tolerance: float
) -> None:
    refusal(body, timestamp=timestamp, signature=signature, secrets=keys, now=now, tolerance=tolerance)


@given(now=TIMES, tolerance=st.floats() | st.integers())
@example(now=float("nan"), tolerance=300)
@example(now=float("inf"), tolerance=float("inf"))
@example(now=NOW, tolerance=float("nan"))
@example(now=10**400, tolerance=300)
@example(now=-(10**5000), tolerance=300.0)
def test_a_genuine_delivery_passes_only_in_time_whatever_the_clock_says(now: float, tolerance: float) -> None:
    try:
        check(now=now, tolerance=tolerance)
    except SignatureError:
        return
    assert abs(int(now) - NOW) <= tolerance


@given(data=st.data(), name=st.sampled_from(["body", "timestamp", "signature", "secrets", "now", "tolerance"]))
def test_values_of_a_wrong_type_are_refused_like_any_other(data: st.DataObject, name: str) -> None:
    odd = ODD
    if name == "body":
        odd = st.none() | st.text() | st.integers() | st.lists(st.integers(), max_size=3)
    if name in {"now", "tolerance"}:
        odd = st.none() | st.just("soon") | st.binary() | st.lists(st.integers()) | st.just(1j)
    refusal(**{"body": BODY, name: data.draw(odd)})
