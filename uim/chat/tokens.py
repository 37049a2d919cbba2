"""The two tokens of a login: how they are made, read and judged. No I/O.

Access: a JWT (HS256, 15 minutes), signed by the first key, verified by all, so that keys can be changed one release at a
time. Refresh: 7 days, base64url of login_id | generation | secret | tag; only its SHA-256 is stored. The tag tells an old
token of this login from garbage, and the successor's secret is derived from the old one, so that a client whose answer got
lost asks again and is told the same. Rule: garbage never ends a login; an old genuine token does, for somebody has copied it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final
from uuid import UUID

import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm

from uim.config import JwtKey
from uim.errors import UIMError

ACCESS_LIFE_S: Final = 15 * 60
REFRESH_LIFE_S: Final = 7 * 24 * 3600
# After the successor's pair was first used: as long as a request of the old pair may still be under way.
REPEAT_WITHIN_S: Final = 30.0
LEEWAY_S: Final = 2
SECRET_BYTES: Final = 32
# Ours are about 350. A header is parsed before its signature can be checked.
MAX_ACCESS_CHARS: Final = 1_024
# Tokens whose signature is known to be ours; some 1 KB each.
MOST_REMEMBERED: Final = 4_096
MOST_HEADS: Final = 64
_TAG_BYTES: Final = 16
_SIGNED_BYTES: Final = 16 + 4 + SECRET_BYTES
_REFRESH_CHARS: Final = 91


class AccessClaims(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an access token says: `sid` is the login, `gen` the generation of its pair, times are seconds of the epoch.

    Ours have no `nbf` and no `aud`; one that has is good from then on alone, and none is for somebody else (RFC 7519, 4.1).
    """

    user_id: UUID
    username: str
    sid: UUID
    gen: int
    iat: int
    exp: int
    nbf: float = 0
    aud: None = None


class _PreparedHMAC(HMACAlgorithm):
    """Whose keys have been looked at: PyJWT does it for each token, which takes longer than to sign."""

    def prepare_key(self, key: str | bytes) -> bytes:
        return key.encode() if isinstance(key, str) else key


_HMAC: Final = HMACAlgorithm(HMACAlgorithm.SHA256)


class Tokens:
    """Signs and verifies access tokens. `now` gives seconds of the epoch."""

    def __init__(self, keys: Sequence[JwtKey], now: Callable[[], float]) -> None:
        self._signing = keys[0]
        self._secrets = {key.kid: key.secret for key in keys}
        self._now = now
        # A client shows the same token at each request, and to verify it costs as much as a small query.
        self._signed = lru_cache(MOST_REMEMBERED)(self._verified)
        # What stands before the first dot is the same text in all tokens of a key.
        self._kid_of = lru_cache(MOST_HEADS)(_kid_of)
        for key in keys:
            _HMAC.prepare_key(key.secret)  # refuses what looks like a public key
        self._jws = jwt.PyJWS()  # to sign
        self._jws.unregister_algorithm("HS256")
        self._jws.register_algorithm("HS256", _PreparedHMAC(_PreparedHMAC.SHA256))

    def sign_access(self, *, user_id: UUID, username: str, login_id: UUID, generation: int) -> str:
        issued_at = int(self._now())
        claims = AccessClaims(user_id, username, login_id, generation, issued_at, issued_at + ACCESS_LIFE_S)
        return self._jws.encode(
            msgspec.json.encode(claims), self._signing.secret, algorithm="HS256", headers={"kid": self._signing.kid}
        )

    def read_access(self, token: str) -> AccessClaims:
        """The claims of a token that we signed and that has not expired.

        Raises UIMError `token_expired`, or `unauthorized` for every other text.
        """
        try:
            claims = self._signed(token)
        except (jwt.PyJWTError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as why:
            raise UIMError("unauthorized", "the access token is not valid") from why
        if claims.nbf > self._now():
            raise UIMError("unauthorized", "the access token is not valid yet")
        if claims.exp + LEEWAY_S <= self._now():
            raise UIMError("token_expired", "the access token has expired")
        return claims

    def _verified(self, token: str) -> AccessClaims:
        if len(token) > MAX_ACCESS_CHARS or not token.isascii():
            raise jwt.DecodeError("too long, or not ASCII")
        signed, _, signature = token.rpartition(".")
        head, _, claims = signed.partition(".")
        secret = self._secrets.get(self._kid_of(head))
        if secret is None:
            raise jwt.InvalidKeyError("no such key")
        # The signature alone is PyJWT's business, which reads a token's other parts letter by letter. What we have signed is as we
        # wrote it: by HS256, and claims of ours; of its times read_access judges.
        if not _HMAC.verify(signed.encode(), secret, _bytes_of(signature)):
            raise jwt.InvalidSignatureError("not signed by us")
        return _claims_of(_bytes_of(claims))


def _bytes_of(part: str) -> bytes:
    """Of a token's part, base64url (RFC 7515 2) without padding."""
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise jwt.DecodeError("not base64url") from None


_claims_of: Final = msgspec.json.Decoder(AccessClaims).decode


def _kid_of(head: str) -> str:
    """Of a token's first part, still unverified."""
    kid = jwt.get_unverified_header(f"{head}.e30.").get("kid", "")
    return kid if isinstance(kid, str) else ""


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token taken apart. Nothing of it is to be believed before `is_genuine`."""

    login_id: UUID
    generation: int
    secret: bytes
    tag: bytes

    @property
    def _signed(self) -> bytes:
        return self.login_id.bytes + self.generation.to_bytes(4, "big") + self.secret

    @property
    def text(self) -> str:
        return base64.urlsafe_b64encode(self._signed + self.tag).rstrip(b"=").decode()

    @property
    def hash(self) -> bytes:
        """What is stored of it."""
        return hashlib.sha256(self._signed).digest()

    def is_genuine(self, refresh_key: bytes) -> bool:
        """Whether the login with this key once gave it out."""
        return hmac.compare_digest(self.tag, _tag(refresh_key, self._signed))

    def successor(self, refresh_key: bytes) -> RefreshToken:
        """The next one of this login: always the same."""
        secret = hmac.digest(refresh_key, b"successor" + self.secret, "sha256")
        return new_refresh(self.login_id, self.generation + 1, refresh_key, secret)


def _tag(refresh_key: bytes, signed: bytes) -> bytes:
    return hmac.digest(refresh_key, signed, "sha256")[:_TAG_BYTES]


def new_refresh(login_id: UUID, generation: int, refresh_key: bytes, secret: bytes) -> RefreshToken:
    signed = RefreshToken(login_id, generation, secret, b"")._signed
    return RefreshToken(login_id, generation, secret, _tag(refresh_key, signed))


def read_refresh(text: str) -> RefreshToken:
    """The token in its parts. Raises UIMError `invalid_refresh_token` for a text that cannot be one."""
    if len(text) != _REFRESH_CHARS or not text.isascii():
        raise invalid_refresh_token()
    try:
        raw = base64.b64decode(text + "=", altchars=b"-_", validate=True)
    except binascii.Error:
        raise invalid_refresh_token() from None
    token = RefreshToken(UUID(bytes=raw[:16]), int.from_bytes(raw[16:20], "big"), raw[20:_SIGNED_BYTES], raw[_SIGNED_BYTES:])
    # Base64's last character has spare bits: four texts for the same bytes, of which we made one.
    if token.text != text:
        raise invalid_refresh_token()
    return token


def invalid_refresh_token() -> UIMError:
    return UIMError("invalid_refresh_token", "sign in again")


@dataclass(frozen=True, slots=True)
class RefreshState:
    """Where a login's refresh tokens stand: the current one's hash, its predecessor's, and since when the newest is used.

    `used_for_s` is None while nobody has used the newest generation's pair.
    """

    generation: int
    refresh_key: bytes
    refresh_hash: bytes
    previous_hash: bytes | None
    used_for_s: float | None


class Refreshing(Enum):
    """What a presented refresh token calls for."""

    ADVANCE = "the current one: a new generation begins"
    REPEAT = "the one before, whose answer may have been lost: the same answer again"
    REUSE = "an old one: the login ends"
    GARBAGE = "none of ours: nothing happens"


def judge_refresh(token: RefreshToken, state: RefreshState) -> Refreshing:
    if not token.is_genuine(state.refresh_key):
        return Refreshing.GARBAGE
    if token.generation == state.generation and hmac.compare_digest(token.hash, state.refresh_hash):
        return Refreshing.ADVANCE
    if token.generation >= state.generation:
        # From a future that a restored database does not know.
        return Refreshing.GARBAGE
    is_previous = state.previous_hash is not None and hmac.compare_digest(token.hash, state.previous_hash)
    if is_previous and (state.used_for_s is None or state.used_for_s < REPEAT_WITHIN_S):
        return Refreshing.REPEAT
    return Refreshing.REUSE
