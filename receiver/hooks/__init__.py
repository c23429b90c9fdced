"""What fires downstream: Python handlers, and URLs."""
