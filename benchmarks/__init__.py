"""Measurements that `docs/benchmarks.md` reports. Run with `make bench`."""
