"""What runs on a pretend host (see hosts.py): its first process, and how commands get there.  Standard library only.

    host_programs.py init NAME          a host's first process: reaps, answers `ssh`, ends when its standard input does
    host_programs.py ssh HOSTS ...      a stand-in for ssh; HOSTS is a hosts file: [options] [user@]HOST command ...
    host_programs.py enter PID ...      run a command in the namespaces of the `unshare` with that pid

The stand-in behaves as ssh does where it matters to a launcher: the command is one line for the login shell, it starts
in the home directory with a login's environment and not the caller's, its session ends when its output is closed by
everybody, the death of the client is not told to it, and a host that does not answer is exit code 255, within seconds.
There is no security in it: the network it listens on is made for one test.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys

PORT = 22
CONNECT = 5.0                            # seconds until a silent host is given up
ALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 6000}
LOST = 255
LOGIN_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
PASSED_ON = "BALSAMFUT_TEST_"            # the one kind of variable that crosses: by it tests find what was left behind
WITH_VALUE = "BbcDEeFIiJLlmOopQRSWw"     # ssh's options that take a value
HEADER = struct.Struct("!cI")            # a frame: which stream (i, o, e; x: the exit code), how many bytes
NAMESPACES = ("net", "uts", "ipc", "pid_for_children", "mnt")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
PR_SET_PDEATHSIG = 1


def keep_alive(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in ALIVE.items():
        link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def send(link: socket.socket, stream: bytes, data: bytes) -> None:
    link.sendall(HEADER.pack(stream, len(data)) + data)


def exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = link.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the other end has closed the connection")
        data += more
    return data


def receive(link: socket.socket) -> tuple[bytes, bytes]:
    stream, size = HEADER.unpack(exactly(link, HEADER.size))
    return stream, exactly(link, size)


# ---- on the host


def init(name: str) -> None:
    """Answer on port 22 until standard input ends; whatever ends below this process is reaped by the kernel."""
    socket.sethostname(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.create_server(("", PORT), backlog=128)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin, listener], [], [])
        if sys.stdin in ready and not os.read(0, 1):
            return
        if listener in ready:
            link, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                os.close(0)
                os.open(os.devnull, os.O_RDONLY)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setsid()
                try:
                    serve(link)
                finally:
                    os._exit(0)
            link.close()


def serve(link: socket.socket) -> None:
    keep_alive(link)
    asked = json.loads(receive(link)[1])
    home = os.environ.get("HOME", "/")
    home = home if os.path.isdir(home) else "/"      # it may lie below the /tmp outside
    environ = {"HOME": home, "PATH": LOGIN_PATH, "SHELL": "/bin/sh", "USER": "root", "LOGNAME": "root",
               **asked["environ"]}
    command = subprocess.Popen(["/bin/sh", "-c", asked["command"]], cwd=home, env=environ, start_new_session=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdin and command.stdout and command.stderr
    streams = {command.stdout.fileno(): b"o", command.stderr.fileno(): b"e"}
    while streams:
        ready, _, _ = select.select([*streams, link.fileno()], [], [])
        for file in ready:
            if file == link.fileno():
                take_input(link, command)
            elif data := os.read(file, 65536):
                send(link, streams[file], data)
            else:
                del streams[file]
    code = command.wait()
    send(link, b"x", bytes([code if code >= 0 else LOST]))


def take_input(link: socket.socket, command: subprocess.Popen[bytes]) -> None:
    """What the client has said, to the command.  A client that has gone ends the session, not the command."""
    try:
        _, data = receive(link)
    except OSError:
        os._exit(0)
    assert command.stdin
    try:
        if data:
            os.write(command.stdin.fileno(), data)
        else:
            command.stdin.close()
    except BrokenPipeError:
        pass


# ---- the way to a host


def ssh(hosts: str, words: list[str]) -> int:
    silent, words = options(words)
    name, command = words[0].rpartition("@")[2], " ".join(words[1:])
    if not command:
        print("ssh stand-in: a command is needed", file=sys.stderr)
        return LOST
    try:
        link = socket.create_connection((address(hosts, name), PORT), timeout=CONNECT)
    except LookupError:
        print(f"ssh: Could not resolve hostname {name}: Name or service not known", file=sys.stderr)
        return LOST
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else "Connection timed out"
        print(f"ssh: connect to host {name} port {PORT}: {why}", file=sys.stderr)
        return LOST
    link.settimeout(None)
    keep_alive(link)
    passed = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
    try:
        send(link, b"c", json.dumps({"command": command, "environ": passed}).encode())
        return relay(link, silent)
    except OSError as error:
        print(f"Connection to {name} closed by remote host: {error}", file=sys.stderr)
        return LOST


def options(words: list[str]) -> tuple[bool, list[str]]:
    """Whether standard input is not to be read, and the words after ssh's options."""
    silent = False
    words = list(words)
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        silent = silent or word == "-n"
        if word[1] in WITH_VALUE and len(word) == 2:
            words.pop(0)
    if not words:
        raise SystemExit("ssh stand-in: [options] [user@]HOST command ...")
    return silent, words


def address(hosts: str, name: str) -> str:
    with open(hosts) as file:
        for line in file:
            words = line.split("#")[0].split()
            if name in words[1:] or words[:1] == [name]:
                return words[0]
    raise LookupError(name)


def relay(link: socket.socket, silent: bool) -> int:
    """Carry the streams until the command's exit code comes."""
    reading = not silent
    if silent:
        send(link, b"i", b"")
    while True:
        ready, _, _ = select.select([link.fileno(), 0] if reading else [link.fileno()], [], [])
        if 0 in ready:
            data = os.read(0, 65536)
            reading = bool(data)
            send(link, b"i", data)
        if link.fileno() in ready:
            stream, data = receive(link)
            if stream == b"x":
                return data[0]
            written = 0
            while written < len(data):
                written += os.write(1 if stream == b"o" else 2, data[written:])


def enter(pid: str, words: list[str]) -> int:
    """Run a command on the host whose first process is a child of `pid`: signals are forwarded, its end is our end."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.getcwd()
    try:
        doors = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in NAMESPACES]
    except OSError:
        print("enter: the host is dead", file=sys.stderr)
        return LOST
    for door in doors:
        if libc.setns(door, 0) != 0:
            print(f"enter: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
            return LOST
    os.chdir(here)
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        child = os.fork()
    except OSError:
        print("enter: the host is dead", file=sys.stderr)   # a PID namespace without its first process takes no other
        return LOST
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        try:
            os.execvp(words[0], words)
        except OSError as error:
            print(f"enter: {words[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
    for number in FORWARDED:
        signal.signal(number, lambda got, _: os.kill(child, got))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "init":
        init(rest[0])
    elif what == "ssh":
        sys.exit(ssh(rest[0], rest[1:]))
    else:
        sys.exit(enter(rest[0], rest[1:]))
