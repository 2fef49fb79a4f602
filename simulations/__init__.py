"""Programs that drive the real thing: the demo, its embedded origin, and the benchmarks."""
