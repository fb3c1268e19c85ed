"""Forks a process that has the Python adapter loaded into a sandbox, once per request.

Owns: the way from the fork to the adapter's `main`. Must not know functions or requests. It is started by the launcher
with a socket as descriptor 3, keeps every privilege, and runs nothing but this folder and the standard library; each
child enters its namespaces, gives everything up, and only then may user code be loaded. The surprise: it has one thread
and stays small, since a fork copies its page tables, and every page a child touches is copied once more.
"""

import asyncio
import ctypes
import gc
import json
import os
import resource
import select
import socket
import sys
import time

CONTROL_FD = 3
# Held so that no received descriptor gets this number: children put theirs on 3 and 4.
RESERVED_FD = 4
MESSAGE_BYTES = 160 << 10
MESSAGE_FDS = 128
# The exit code of a container whose sandbox could not be entered, as container runtimes use it.
COULD_NOT_START = 128
# Under pressure the kernel takes a sandbox before it takes the platform.
OOM_SCORE = b"500"
# The interpreter settles after eight.
WARM_UP_ROUNDS = 20
ASSETS = os.path.dirname(os.path.abspath(__file__))

CLONE_NEWPID = 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 1, 2, 4, 8, 4096
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
SECCOMP_SET_MODE_FILTER = 1
SYS_CLOSE_RANGE = 436
if os.uname().machine == "x86_64":
    SYS_CAPSET, SYS_SECCOMP = 126, 317
else:
    SYS_CAPSET, SYS_SECCOMP = 91, 277

libc = ctypes.CDLL(None, use_errno=True)


class Filter(ctypes.Structure):
    """The kernel's `sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]


class StepFailed(Exception):
    """A step on the way into the sandbox failed."""


def check(step, result):
    if result < 0:
        raise StepFailed(f"{step}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(step, option, *values):
    arguments = [ctypes.c_ulong(v) for v in values + (0,) * (4 - len(values))]
    check(step, libc.prctl(option, *arguments))


class Zygote:
    def __init__(self):
        self.control = socket.socket(fileno=CONTROL_FD)
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self.poll = select.poll()
        self.poll.register(CONTROL_FD, select.POLLIN)
        self.children = {}
        self.filter = None
        self.masked = []
        self.adapter, self.broken = load_adapter()

    def serve(self):
        """Serves until the launcher is gone; returns the exit code, in a child the function's."""
        while True:
            for fd, _ in self.poll.poll():
                if fd != CONTROL_FD:
                    self.reap(fd)
                    continue
                message, fds, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, MESSAGE_FDS)
                if not message:
                    return 0
                main = self.obey(json.loads(message), fds)
                if main is not None:
                    return main()

    def answer(self, kind, **fields):
        self.control.send(json.dumps({kind: fields}).encode())

    def obey(self, order, fds):
        """Returns the adapter's `main` in a child, and nothing in the zygote."""
        if "Boot" in order:
            program = bytes(order["Boot"]["filter"])
            self.filter = Filter(len(program) // 8, program)
            self.masked = [path.encode() for path in order["Boot"]["masked"]]
            return None
        spawn = order["Spawn"]
        try:
            if self.broken:
                raise StepFailed(self.broken)
            pid = self.fork(isolated=spawn["user"] is not None)
        except (OSError, StepFailed) as error:
            self.answer("Failed", request=spawn["request"], error=str(error))
            pid = None
        if pid == 0:
            return self.become(spawn, fds)
        for fd in fds:
            os.close(fd)
        if pid is not None:
            self.answer("Started", request=spawn["request"], pid=pid)
            pidfd = os.pidfd_open(pid)
            self.children[pidfd] = pid
            self.poll.register(pidfd, select.POLLIN)
        return None

    def fork(self, isolated):
        """Forks; the child of an isolated one is the first of a new process namespace."""
        if not isolated:
            return os.fork()
        check("new process namespace", libc.unshare(CLONE_NEWPID))
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0 and libc.setns(self.own_pids, CLONE_NEWPID) < 0:
                # The next child would be forked into somebody else's namespace.
                os._exit(70)
        return pid

    def reap(self, pidfd):
        pid = self.children.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        self.poll.unregister(pidfd)
        os.close(pidfd)
        self.answer("Exited", pid=pid, status=os.waitstatus_to_exitcode(status))

    def become(self, spawn, fds):
        """In the child: enters the sandbox. Errors are printed where the function's own would be."""
        try:
            self.enter(spawn, fds)
        except (OSError, StepFailed) as error:
            os.write(2, f"dhow: cannot start the container: {error}\n".encode())
            os._exit(COULD_NOT_START)
        except BaseException as error:
            os.write(2, f"dhow: cannot start the container: {error!r}\n".encode())
            os._exit(COULD_NOT_START)
        gc.enable()
        return self.adapter.main

    def enter(self, spawn, fds):
        # Its descriptor becomes the listener, which this object must not close one day.
        self.control.detach()
        fds = iter(fds)
        stdout, stderr = next(fds), next(fds)
        os.dup2(stderr, 2)
        listener = next(fds) if spawn["listener"] else None
        ready = next(fds) if spawn["ready"] else None
        isolated = spawn["user"] is not None
        os.setsid()
        os.umask(0o022)
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
            score.write(OOM_SCORE)
        if isolated:
            namespaces = [next(fds) for _ in range(4)]
            for _ in range(spawn["doors"]):
                os.write(next(fds), b"0")
            self.enter_namespaces(namespaces)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        for target, fd in ((CONTROL_FD, listener), (RESERVED_FD, ready)):
            if fd is None:
                os.close(target)
            else:
                os.dup2(fd, target, inheritable=False)
        check("descriptors", libc.syscall(SYS_CLOSE_RANGE, 5, 0xFFFFFFFF, 0))
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = spawn["open_files"] if most == resource.RLIM_INFINITY else min(spawn["open_files"], most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if isolated:
            os.setgroups([])
            os.setresgid(*[spawn["user"]] * 3)
            os.setresuid(*[spawn["user"]] * 3)
        drop_capabilities()
        os.chdir(spawn["working_dir"])
        self.set_up_python(spawn)
        # After the change of user, which clears it.
        prctl("death signal", PR_SET_PDEATHSIG, 9)
        prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)
        installed = libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(self.filter))
        check("system call filter", installed)

    def enter_namespaces(self, namespaces):
        for fd, name in zip(namespaces, ("network", "ipc", "host name", "mounts")):
            check(f"{name} namespace", libc.setns(fd, 0))
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
        check("/proc", libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(flags), b"hidepid=2"))
        for path in self.masked:
            if libc.mount(b"/dev/null", path, None, ctypes.c_ulong(MS_BIND), None) < 0:
                if ctypes.get_errno() != 2:  # This kernel has no such file.
                    raise StepFailed(f"{path.decode()}: {os.strerror(ctypes.get_errno())}")

    def set_up_python(self, spawn):
        """Makes the interpreter look as if it had been started inside."""
        os.environ.clear()
        os.environ.update(spawn["env"])
        time.tzset()
        assets = os.path.join(spawn["assets"], "python")
        sys.argv = [os.path.join(assets, "dhow_adapter.py")]
        # Where there are no mounts, what is at a fixed place inside is somewhere else.
        self.adapter.DEPENDENCIES = os.environ.pop("PYTHONPATH", self.adapter.DEPENDENCIES)


def drop_bounding_set():
    """Takes nothing from this process, which executes nothing, and every child starts without it."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # Past the last one this kernel knows, or not permitted: then there is nothing to take away.


def drop_capabilities():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    check("capabilities", libc.syscall(SYS_CAPSET, header, (ctypes.c_uint32 * 6)()))
    prctl("ambient capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    # Otherwise its own files in /proc would belong to root. Nothing it remembers of the zygote is secret.
    prctl("dumpable", PR_SET_DUMPABLE, 1)


def load_adapter():
    """The adapter, or why there is none."""
    sys.path.insert(0, ASSETS)
    try:
        import dhow_adapter
    except Exception as error:
        hint = "" if os.path.isdir(os.path.join(ASSETS, "lib")) else "; this build of dhow carries no Python libraries"
        return None, f"the Python runtime cannot be loaded: {type(error).__name__}: {error}{hint}"
    return dhow_adapter, None


def warm_up():
    """Runs what every child will run, until the interpreter has settled how: it writes that beside the code, and each
    page of it that a child writes is a page to copy."""
    for _ in range(WARM_UP_ROUNDS):
        asyncio.run(asyncio.sleep(0))
        os.environ.clear()
        os.environ.update([("PATH", "/usr/bin:/bin")])
        os.path.join("/dhow", "python")
        time.tzset()
    sys.path.remove(ASSETS)
    # What is found where the child will look is another matter, and forgetting it there would cost more.
    sys.path_importer_cache.clear()


def replace_streams():
    """Makes the standard streams objects that do not believe in a position, which a container's pipes do not have;
    this process's own may be a file."""
    read, write = os.pipe()
    for fd, name in ((1, "stdout"), (2, "stderr")):
        kept = os.dup(fd)
        os.dup2(write, fd)
        setattr(sys, name, open(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False))
        os.dup2(kept, fd)
        os.close(kept)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    os.close(read)
    os.close(write)


def main():
    os.dup2(0, RESERVED_FD)
    replace_streams()
    drop_bounding_set()
    # What is there now stays for ever: no collection may write to pages that are shared with every child.
    gc.disable()
    zygote = Zygote()
    warm_up()
    gc.freeze()
    return zygote.serve()


if __name__ == "__main__":
    sys.exit(main())
