"""What the process imports from which workers are forked, once for all of them.

SIGTERM that a whole group of processes gets does not end it: a cell that comes to the end of its round needs it.
It ends with the process that started it.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
