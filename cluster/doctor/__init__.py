"""Whether a cluster can run sweeps: facts are gathered on every node, and verdicts are functions of them.

A check is one function of the facts and one line in `checks.CHECKS`.
"""
