"""Starting a service where no writer lives: a process of its own that outlives this one.

It does not outlive the unit of systemd or the container that this one is in: no process can leave
those by itself. Of many that are started at once the registry's lock lets one stay; the others end
by themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
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


def command_of(name: str) -> str:
    """Return what to type to start the service of a registry."""
    return f"jidoka-shm serve {'-- ' if name.startswith('-') else ''}{name}"


def silence_of(name: str) -> str:
    """Return what to say of a service that was started and cannot be reached."""
    return f"`{command_of(name)}` was started and does not answer: run it to see why"


def start(name: str, deadline: float) -> None:
    """Start the service of a registry, detached; it need not answer yet on return.

    Args:
        name: the registry's name.
        deadline: until when it must be started, by the monotonic clock in seconds.

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
            timeout=max(0.0, deadline - time.monotonic()),
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"its service cannot be started: {_why(error)}"
        raise WriterUnavailable(name, reason=reason) from error


def _why(error: OSError | subprocess.SubprocessError) -> str:
    """Return what kept the service from being started, without the program that was run."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{sys.executable} did not do it in time"
    if isinstance(error, subprocess.CalledProcessError):
        return f"{sys.executable} ended with status {error.returncode}"
    return str(error)


def _check_extra(name: str) -> None:
    # Not imported: this process has no use for them.
    for library in ("click", "rich"):
        if find_spec(library) is None:
            reason = f"start=True needs {library}: pip install 'jidoka-shm[cli]'"
            raise WriterUnavailable(name, reason=reason)


def _environment() -> dict[str, str]:
    """Return this process's environment; what it says of places here is said in full."""
    environment = {key: value for key, value in os.environ.items() if key not in _PRIVATE}
    path = environment.get("PYTHONPATH")
    if path:
        places = [os.path.abspath(place) for place in path.split(os.pathsep) if place]  # noqa: PTH100 - text in, text out
        environment["PYTHONPATH"] = os.pathsep.join(places)
    return environment
