"""The token keys of a gateway in tests."""

from __future__ import annotations

from gateway.core.times import utc_now
from gateway.core.tokens import Key, KeyRing
from gateway.store import key_file
from tests.support.harness import Harness


def retire_key(running: Harness) -> KeyRing:
    """Seal with a new key from now on and retire the one that sealed; returns the keys before.

    As `keys rotate`, `promote` and `retire` do, but without asking who needs the key.
    """
    before = key_file.read(running.gateway.settings.key_file)
    assert before is not None, "no token was sealed yet"
    new = Key.generate(utc_now())
    after = before.with_key(new).sealing_with(new.kid).retiring(before.seals)
    key_file.replace(running.gateway.settings.key_file, after)
    running.gateway.services.provisioning.keys.reload()
    return before
