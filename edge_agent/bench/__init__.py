"""The agent's side of benchmarks that the coordinator's package leads (scripts/bench)."""
