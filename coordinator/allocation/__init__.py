"""The allocation of blocks to devices (ZorBA, arXiv 2603.04436): pure functions, from profiles and a manifest to what each device trains."""
