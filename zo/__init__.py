"""What a device and a coordinator must agree on: numerics, ledger, bundle, engine, wire (DESIGN section 9)."""

__version__ = "0.1.0"
