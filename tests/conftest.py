"""Examples that hypothesis makes are the same in every run: a failure can be repeated, and none comes by chance."""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
