"""The reproduction ledger: published claims as runs whose figures decide the verdict.

`python -m reproductions` plays what the files of configs/reproductions name; docs/reproductions.md
is made of what comes out.
"""
