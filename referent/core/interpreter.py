"""A lock for work in C that holds Python's interpreter for tens of milliseconds."""

from threading import Lock

# Threads do such work one at a time: an event loop in the same process then waits for one piece of it, not for one
# piece of each thread. This costs no time, since the interpreter never runs two of them at once anyway.
TURN = Lock()
