"""Entry points for platforms that start us for a moment: nothing may be left running there, and every start is waited for.

So a start is made light here, before an entry point imports the rest; it ends with `settle`.
"""

from __future__ import annotations

import gc
import sys

gc.disable()  # what is loaded at the start stays: each collection meanwhile would walk over all of it in vain
if "rich" not in sys.modules:
    # structlog looks for it, for the colours of a terminal. There is none, and loading it takes a tenth of the whole start.
    sys.modules["rich"] = None  # type: ignore[assignment]  # what the import system reads as: there is none
    import structlog  # noqa: F401

    del sys.modules["rich"]


def settle() -> None:
    """Everything is loaded: collect from now on, but not what is here."""
    gc.freeze()
    gc.enable()
