"""A decoder of our own: a static cache, rows that have ended dropped, adapters fused.

`generator` is the engine behind the `Generator` interface; the other modules are its parts.
"""
