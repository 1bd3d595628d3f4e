"""`pelasr` without the seconds that its imports take: a process that has made them forks one for every command.

`python warm.py serve SOCKET` waits for commands until its stdin is closed. `python warm.py run SOCKET WORDS...` is
`pelasr WORDS...` in a process of its own, with the caller's folder, environment, streams and exit code; it ends with
its caller, also by SIGKILL.
"""

import gc
import importlib
import json
import os
import pkgutil
import select
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What modules of pelasr import when they need it.
LATER = ["matplotlib.pyplot", "sentencepiece", "tensorboardX", "espnet2.layers.log_mel", "espnet2.asr.specaug.specaug"]
LATER += [f"espnet2.asr.{name}" for name in ("encoder.conformer_encoder", "decoder.transformer_decoder")]
LATER += ["espnet2.asr.decoder.transducer_decoder", "espnet2.asr_transducer.joint_network"]
LATER += ["transformers.models.hubert.modeling_hubert", "scipy.cluster.vq", "scipy.fft"]
fork = get_context("fork")


class Warm:
    """A server of commands, to be closed, and how its commands are typed.

    `command`: what stands for `python -m pelasr`; `environment`: variables with which bash takes `pelasr` for it.
    """

    def __init__(self, folder: Path) -> None:
        address = folder / "socket"
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}/local:{ROOT}", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server = subprocess.Popen([sys.executable, __file__, "serve", address], env=environment, **pipes)
        assert self._server.stdout.readline() == b"ready\n"
        self.command = [sys.executable, "-S", "-E", __file__, "run", str(address)]
        self.environment = {"BASH_FUNC_pelasr%%": f'() {{ {" ".join(self.command)} "$@"\n}}'}

    def close(self) -> None:
        self._server.communicate()


def serve(address: str) -> None:
    names = [module.name for module in pkgutil.walk_packages([str(ROOT / "pelasr")], "pelasr.")]
    with redirect_stdout(sys.stderr):  # ESPnet prints
        for name in [*names, *LATER]:
            importlib.import_module(name)
    gc.freeze()  # so that those that are forked leave the memory shared
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                fork.Process(target=answer, args=(connection,)).start()


def answer(connection: socket.socket) -> None:
    """Have a command done, report its exit code, and kill it should its caller end before it."""
    message, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
    command = fork.Process(target=work, args=(streams, *json.loads(message)))
    command.start()
    if connection in select.select([connection, command.sentinel], [], [])[0]:
        command.kill()
    else:
        command.join()
        connection.send(str(command.exitcode).encode())


def work(streams: list[int], folder: str, environment: dict[str, str], words: list[str]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - as long as the process
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["pelasr", *words]
    importlib.import_module("pelasr.cli.main").main(words)


def run(address: str, words: list[str]) -> int:
    """The exit code of a command."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps([os.getcwd(), dict(os.environ), words]).encode()], [0, 1, 2])
        return int(connection.recv(16))


if __name__ == "__main__":
    what, address, *words = sys.argv[1:]
    sys.exit(run(address, words) if what == "run" else serve(address))
