"""What may be shown of a signing secret: enough to tell which one it is, of no use to whoever wants to sign with it.

`/readyz` shows the fingerprints of the secrets a server accepts, to anybody. So each is short and slow: 32 bits are the most it can
tell of a secret, whatever it is, so that of 64 random digits nothing worth having is known; and where somebody chose a phrase
of 16 letters instead, each guess at it costs a tenth of a second and 16 MB, where a captured delivery would cost a microsecond.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

_LABEL: Final = b"receiver: fingerprint of a webhook secret"
"""Fixed, so that every process tells the same; nothing else here is made of it, so that nothing else follows from a fingerprint."""
FORM: Final = re.compile(r"[0-9a-f]{8}")

HEADER: Final = "X-Receiver-Webhook"
"""A header that our webhooks at Reader carry: the fingerprint of the secret they are to be signed with. It is not signed, and proves
nothing by itself; beside a signature that is verified it tells whether Reader took the secret that it was given."""


def fingerprint(secret: str) -> str:
    """Eight hexadecimal digits. Takes a tenth of a second, on purpose."""
    return hashlib.scrypt(secret.encode(), salt=_LABEL, n=2**14, r=8, p=1, dklen=4).hex()
