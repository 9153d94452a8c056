"""The device: joins a run, works its rounds, keeps its text to itself (DESIGN section 9)."""
