"""The command line in processes of its own.

Importing fperr takes three seconds, and a command on a tiny network less than one. So a server
imports it once, and each command is a fork of it: its own memory, folder, environment, signals and
exit code, as if it had been started anew. `python -m fperr.cli` itself is started by `started`.
"""

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
WORK = [
    f"fperr.cli.work.{name}"
    for name in ("attack", "attribute", "figures", "layers", "measure", "report", "zoo")
]
# torch._dynamo is what a capture imports
FORKS.set_forkserver_preload(["fperr.cli.app", *WORK, "torch._dynamo", "tests.makers.commands"])


def called(arguments, folder, environment, streams, largest_file):
    """What the fork does: the command, and nothing else."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["fperr", *arguments]
    import torch  # noqa: PLC0415 - the server has imported both

    from fperr.cli import app  # noqa: PLC0415

    torch.seed()  # of its own, as in a new process
    app.main()


class Command:
    """A command at work; used as subprocess.Popen is."""

    def __init__(self, arguments, cwd=None, environment=None, largest_file=None):
        self.args = list(arguments)
        self.streams = tuple(tempfile.mkstemp(prefix="fperr_test_")[1] for _ in range(2))
        given = dict(os.environ) if environment is None else environment
        target = (self.args, str(cwd or os.getcwd()), given, self.streams, largest_file)
        self.process = FORKS.Process(target=called, args=target)
        self.process.start()

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()

    def communicate(self):
        """What it wrote, once it has ended."""
        self.process.join()
        texts = [Path(path).read_text() for path in self.streams]
        for path in self.streams:
            os.unlink(path)
        return texts

    @property
    def returncode(self):
        return self.process.exitcode


def variables(environment):
    """This process's environment without the data of others, and what is given."""
    return {k: v for k, v in os.environ.items() if k != "FPERR_DATA"} | environment


def run(*arguments, cwd=None, **environment):
    """The command's exit code and words, by a fork."""
    command = Command(arguments, cwd, variables(environment))
    out, error = command.communicate()
    return subprocess.CompletedProcess(arguments, command.returncode, out, error)


def started(*arguments, cwd=None, **environment):
    """The same by a new process of `python -m fperr.cli`."""
    return subprocess.run(
        [sys.executable, "-m", "fperr.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=variables(environment),
        check=False,
    )
