"""Console commands for tests, run in forks of a process that has imported their libraries already.

Every command of nnU-Net imports for seconds before it does anything, and the suite runs hundreds of them. Neither
nnU-Net nor the package is imported before the fork: both read the environment of the command. For the same reason pools
that would be spawned are forked here. The tests of signals, of what a killed process leaves behind and of a full output
run real commands. Limit: Linux; commands that are Python scripts.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

LIBRARIES = (
    "torch", "torch._dynamo", "torch.nn.parallel", "seaborn", "scipy.stats", "scipy.ndimage", "skimage.transform",
    "sklearn.model_selection", "pandas", "matplotlib.pyplot", "SimpleITK", "nibabel", "tifffile", "h5py", "blosc2",
    "batchgenerators.dataloading.multi_threaded_augmenter", "batchgeneratorsv2.transforms.spatial.spatial",
    "dynamic_network_architectures.architectures.unet", "acvl_utils.cropping_and_padding.bounding_boxes", "filelock",
)  # fmt: skip
SOCKET = "TEST_COMMAND_SERVER"
FORK_POOLS = "TEST_FORK_POOLS_OF_SCRIPTS"
CLIENT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["{socket}"])
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([sys.argv, dict(os.environ), os.getcwd()]).encode())
    server.shutdown(socket.SHUT_WR)
    code = int(server.recv(16) or b"1")
sys.exit(code if code >= 0 else 128 - code)
"""
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # read when torch is imported


@cache
def variables() -> dict[str, str]:
    """Start a server for this process; returns a ``PATH`` that begins with stand-ins of the commands, and its name."""
    folder = tempfile.mkdtemp(prefix="commands")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    name = f"{folder}/socket"
    for command in ["python", *(file.name for file in BIN.glob("nnUNetv2*"))]:
        stand_in = Path(folder) / command
        stand_in.write_text(CLIENT.format(python=sys.executable, socket=SOCKET))
        stand_in.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        number = listener.fileno()
        subprocess.Popen([sys.executable, __file__, str(number), str(os.getpid())], pass_fds=[number], env=ENVIRONMENT)
    return {"PATH": f"{folder}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}", SOCKET: name}


def serve(listener: socket.socket, parent: int) -> None:
    """Fork for each connection, as long as the parent lives; returns in the process that is to run the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == parent:
        if select.select([listener], [], [], 1)[0]:
            connection = listener.accept()[0]
            if os.fork() == 0:
                listener.close()
                return handle(connection)
            connection.close()
    leave(0)


def handle(connection: socket.socket) -> None:
    """Answer with the exit code of a child process; in that child, become the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as stream:
        argv, environment, folder = json.loads(stream.read())
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(BrokenPipeError):
            connection.sendall(str(code).encode())
        os._exit(0)
    connection.close()
    for stream_number, descriptor in enumerate(streams):
        os.dup2(descriptor, stream_number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = argv


def become_command() -> None:
    """Run the script or module in ``sys.argv`` as ``__main__``."""
    draw_other_numbers()
    # Read when torch was imported, of the server's environment.
    sys.modules["torch._dynamo.config"].disable = os.environ.get("TORCH_COMPILE_DISABLE") == "1"
    sys.path[:0] = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    name = Path(sys.argv[0]).name
    if name != "python" or FORK_POOLS in os.environ:
        fork_pools()
    if name == "python":
        sys.argv = sys.argv[1:]
        sys.path.insert(0, os.getcwd())
        if sys.argv[0] == "-m":
            sys.argv = sys.argv[1:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.argv[0] = sys.path[0] = str(BIN / name)
        runpy.run_path(sys.argv[0], run_name="__main__")


def run_command() -> None:
    """As :func:`become_command`; an exception goes to ``sys.excepthook``, and exit code 1 unless that says another."""
    try:
        become_command()
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def exit_code_of(function: Callable[[], None]) -> int:
    """Call it; returns the code that Python would end with after its ``SystemExit``, whose text it prints."""
    try:
        function()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """End as Python does, but without removing every object.

    That would copy the memory that is shared, and Triton 3.9 would complain of objects that were frozen.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def fork_pools() -> None:
    """Let ``get_context("spawn")``, which the host's commands ask for, give the context of ``fork``.

    Scripts are told by :data:`FORK_POOLS`: some of them test how processes start.
    """
    context_of = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: context_of("fork" if method == "spawn" else method)


def draw_other_numbers() -> None:
    """Seed the generators anew, as every start of Python does."""
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.modules["torch"].seed()


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # a collection in a fork would copy the memory of all that was imported
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    leave(exit_code_of(run_command))
