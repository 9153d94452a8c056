"""What `scripts/bench` runs: measurements as ratios inside one run."""
