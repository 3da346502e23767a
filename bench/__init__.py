"""Measurements against the libraries that others would use, as ratios that anyone can take again.

    python -m bench                    # or: make bench
    python -m bench.model              # one of them
    python -m bench --write results/   # and keep what was measured, and on what

Ours and theirs take turns in one process, so that whatever else the machine does slows both. A
ratio is the median over the turns; the least and the greatest stand beside it. Nothing is asserted.
"""
