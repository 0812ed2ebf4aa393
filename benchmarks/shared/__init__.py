"""The code that several commands use. This file imports nothing, because `chips` must be imported before JAX."""
