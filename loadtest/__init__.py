"""How much this server carries, measured from outside: `python -m loadtest --help`.

Rule: the generator must cost little, or it measures itself: one process, one selector, frames made by hand. Figures are given
as shares of what the machine does bare (echo, append), for machines differ and drift.
"""
