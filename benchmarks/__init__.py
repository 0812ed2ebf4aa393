"""Commands that measure this package and its peers: `python -m benchmarks.NAME`.

`records/` holds the JSON files that commands write, and `shared/` the code that several commands use.
"""
