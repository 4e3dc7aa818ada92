"""What the harness itself costs, beside what it evaluates.

``make bench`` runs the benchmarks of this folder and writes what they measured into ``docs/benchmarks.md``.
"""
