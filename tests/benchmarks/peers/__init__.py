"""Our attacks beside those of the public libraries: same model, same examples, same budget, in one run.

``make compare`` runs every comparison and writes ``docs/benchmarks.md``. It needs the extra ``peers``.
"""
