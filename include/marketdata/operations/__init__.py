"""Load tests and chaos drills: what the platform promises of speed, recovery and loss, measured where it runs."""
