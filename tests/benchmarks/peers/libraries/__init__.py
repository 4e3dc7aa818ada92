"""One module per library: plain functions ``(problem, **settings) -> x_adv``.

Parameters that mean the same get the same value in every library (steps, restarts, queries, draws of a random
model). What a comparison does not name keeps the library's default. Libraries are imported inside the functions, so
that a missing one costs only its own rows.
"""
