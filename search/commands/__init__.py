"""Commands over sweeps: one file a theme, each command a plain function that `launch.py` registers.

What is heavy is imported inside the functions, so that `--help` comes at once.
"""
