"""Both ends of a connection prove that they know a secret, without sending it.

Each sends 32 random bytes, and the HMAC-SHA256 under the secret of its role and both of these. The
end that listens says nothing else before the other one has proved itself, and the one that calls
says nothing before it has an answer. What follows is neither encrypted nor signed.
"""

import hashlib
import hmac
import secrets
import socket
import time

SECONDS = 10.0  # for the whole exchange
_SIZE = 32  # bytes of a number, and of a proof


def admit(connection: socket.socket, secret: str) -> bool:
    """Returns whether a caller knows the secret; only then it learns that this end does."""
    try:
        ours, until = secrets.token_bytes(_SIZE), time.monotonic() + SECONDS
        connection.sendall(ours)
        theirs, proof = _receive(connection, until), _receive(connection, until)
        if not hmac.compare_digest(proof, _proof(secret, b"caller", ours + theirs)):
            return False
        connection.sendall(_proof(secret, b"listener", ours + theirs))
        connection.settimeout(None)
    except OSError:
        return False
    return True


def introduce(connection: socket.socket, secret: str) -> bool:
    """Returns whether the end that was called knows the secret."""
    try:
        ours, until = secrets.token_bytes(_SIZE), time.monotonic() + SECONDS
        numbers = _receive(connection, until) + ours
        connection.sendall(ours + _proof(secret, b"caller", numbers))
        proof = _receive(connection, until)
        connection.settimeout(None)
    except OSError:
        return False
    return hmac.compare_digest(proof, _proof(secret, b"listener", numbers))


def _receive(connection: socket.socket, until: float) -> bytes:
    """Returns the next bytes; OSError if they do not come in time."""
    found = b""
    while len(found) < _SIZE:
        connection.settimeout(max(until - time.monotonic(), 1e-3))
        part = connection.recv(_SIZE - len(found))
        if not part:
            raise ConnectionError("closed")
        found += part
    return found


def _proof(secret: str, role: bytes, numbers: bytes) -> bytes:
    return hmac.digest(secret.encode(), role + numbers, hashlib.sha256)
