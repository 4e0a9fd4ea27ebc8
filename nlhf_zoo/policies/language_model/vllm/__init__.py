"""vLLM as the engine that draws: in a process beside the run, or behind HTTP.

`generator` and `server` are the engines behind the `Generator` interface; `adapters` gives each
version of a player a folder, a name and a number of its own, `rows` writes requests and reads what
was drawn, `limits` refuses what the engine would draw from another law.
"""
