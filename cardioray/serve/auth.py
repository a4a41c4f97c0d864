"""API keys: random texts of which the server knows only the SHA-256.

A key holds 256 random bits, so that its plain hash cannot be searched; what a password would need
(salt and a slow hash) would only slow every request.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cardioray import storage
from cardioray.serve.settings import is_loopback

HASHES_VARIABLE = "CARDIORAY_API_KEYS_SHA256"
FILE_VARIABLE = "CARDIORAY_API_KEYS_SHA256_FILE"
_HASH = re.compile(r"[0-9a-f]{64}")


def new_key() -> tuple[str, str]:
    """A new API key for a client, and its SHA-256 for the server."""
    key = f"cr_{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """The SHA-256 of a key in hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class KeyRing:
    """The keys a server accepts.

    Attributes:
        hashes: SHA-256 of each key; empty when no key is asked for.
    """

    hashes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hashes)

    def accepts(self, key: str) -> bool:
        """Whether a key is one of the ring's; takes the same time for any wrong key."""
        digest = hash_key(key)
        found = False
        for known in self.hashes:
            found |= hmac.compare_digest(digest, known)
        return found


def read_keys(file: str | None, environment: Mapping[str, str] = os.environ) -> KeyRing:
    """The keys from a file, from the file the environment names, and from the environment itself.

    Args:
        file: one hash a line; a text after it (whose key it is) and lines with # are left out.
        environment: see `HASHES_VARIABLE` (hashes with commas between) and `FILE_VARIABLE`.

    Raises:
        ValueError: when a file is missing or a hash is none; a key in clear text is not repeated.
    """
    hashes = _parse(environment.get(HASHES_VARIABLE, "").replace(",", "\n"), HASHES_VARIABLE)
    for path in (file, environment.get(FILE_VARIABLE)):
        if path:
            try:
                text = storage.read_bytes(storage.absolute(path)).decode()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"The API key file {path} cannot be read: {error}.") from None
            hashes += _parse(text, path)
    return KeyRing(tuple(dict.fromkeys(hashes)))


def require_keys(host: str | None, keys: KeyRing) -> None:
    """Refuse to listen beyond this machine without API keys.

    Raises:
        ValueError: says how to make a key.
    """
    if is_loopback(host) or keys:
        return
    shown = host or "every interface"
    raise ValueError(
        f"The server would listen on {shown}, which other machines can reach, but there are no "
        f"API keys. Make one with `cardioray serve-key`, and give its SHA-256 in {HASHES_VARIABLE} "
        f"or in a file named by {FILE_VARIABLE} or api_keys_file; or listen on 127.0.0.1."
    )


def _parse(text: str, where: str) -> list[str]:
    hashes = []
    for number, line in enumerate(_lines(text), start=1):
        digest = line.split(maxsplit=1)[0].lower()
        if not _HASH.fullmatch(digest):
            raise ValueError(
                f"{where}: entry {number} does not begin with a SHA-256 (64 hexadecimal digits). "
                "The server takes the hash of a key, not the key; `cardioray serve-key` prints "
                "both."
            )
        hashes.append(digest)
    return hashes


def _lines(text: str) -> Iterable[str]:
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]
