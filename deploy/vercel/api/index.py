"""The function that Vercel runs for every path.

Handlers of your own: `Vercel(build)`, where `build(settings)` returns your `Receiver(settings)`.
"""

from receiver.serverless.vercel import Vercel

app = Vercel()
