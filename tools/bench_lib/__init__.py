"""Measures terrane beside what else there is; `tools/bench` runs it."""
