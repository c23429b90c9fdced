"""Message brokers as hooks: each with its own client, and each told done only by the broker's own acknowledgement."""
