"""Reader's API, emulated over real sockets: faithful first, cruel when asked, one story for one seed.

```python
async with Sandbox(seed=1, lose=0.5) as reader:
    reader.url, reader.api_key, reader.secret
    …
    await reader.settled()
    reader.ledger()
```
"""

from receiver.sandbox.background import BackgroundSandbox
from receiver.sandbox.faults import FaultError, Faults
from receiver.sandbox.ledger import Happening
from receiver.sandbox.options import OptionError, Options
from receiver.sandbox.server import Sandbox
from receiver.sandbox.switches import SWITCHES, Switch

__all__ = ["SWITCHES", "BackgroundSandbox", "FaultError", "Faults", "Happening", "OptionError", "Options", "Sandbox", "Switch"]
