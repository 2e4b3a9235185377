"""Starting a service where no writer lives: a process of its own that outlives this one.

Of many that are started at once the registry's lock lets one stay; the others end by themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from .errors import WriterUnavailable

#: What the process between does: the service becomes no child of ours, which this program would
#: have to wait for, and begins with no signal blocked, whatever this thread has blocked.
_DETACH: Final = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, ())
if not os.fork():
    os.execv(sys.argv[1], sys.argv[1:])
"""


#: What the interpreter is given before the name. -P: where it runs is no place to import from.
#: A name may begin with a dash, and is no option then.
_SERVE: Final = ("-P", "-m", "jidoka_shm", "serve", "--")

#: What a service manager says to the process that it started, and to no other.
_PRIVATE: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)


def start(name: str) -> None:
    """Start the service of a registry, detached; it need not answer yet on return.

    Raises:
        WriterUnavailable: where it cannot be started, naming why.
    """
    _check_extra(name)
    service = [sys.executable, *_SERVE, name]
    try:
        subprocess.run(  # noqa: S603 - this interpreter, and a name that was checked
            [sys.executable, "-I", "-S", "-c", _DETACH, *service],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"its service cannot be started: {error}"
        raise WriterUnavailable(name, reason=reason) from error


def _check_extra(name: str) -> None:
    try:
        import click  # noqa: F401, PLC0415 - only what is about to start the command needs it
        import rich  # noqa: F401, PLC0415 - as above
    except ModuleNotFoundError as error:
        reason = f"start=True needs {error.name}: pip install 'jidoka-shm[cli]'"
        raise WriterUnavailable(name, reason=reason) from None


def _environment() -> dict[str, str]:
    """Return this process's environment; what it says of places here is said in full."""
    environment = {key: value for key, value in os.environ.items() if key not in _PRIVATE}
    path = environment.get("PYTHONPATH")
    if path:
        places = [os.path.abspath(place) for place in path.split(os.pathsep) if place]  # noqa: PTH100 - text in, text out
        environment["PYTHONPATH"] = os.pathsep.join(places)
    return environment
