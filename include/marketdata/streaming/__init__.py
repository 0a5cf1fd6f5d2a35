"""Topics as code, the ledger of what has been published, and the publisher that publishes every change exactly once."""
