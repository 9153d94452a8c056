"""The server: bundles, rounds, aggregation, ledger store, evaluation, export (DESIGN section 9)."""
