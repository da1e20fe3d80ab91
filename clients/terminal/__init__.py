"""`bitskip complete` and `bitskip chat`.

The commands import what they run inside themselves, so that `bitskip --help` is quick.
"""
