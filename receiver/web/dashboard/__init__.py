"""`/dashboard`: what happens here, for people to look at. Pages made on this side, that come alive where scripts run."""
