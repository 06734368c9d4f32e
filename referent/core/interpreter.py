"""Work in C that holds Python's interpreter for tens of milliseconds."""

from threading import Lock

# Such work takes turns: an event loop in the same process then waits for one piece of it, and not for one of each
# thread. Nothing is slower for it, since the interpreter lets no two run at one time.
TURN = Lock()
