"""When, with which code and on which machine something was measured: part of what is committed."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from recsys.core.runs import find_root


def command_output(*command: str) -> str:
    "Return what a command prints, without the last line break; '' where it fails."
    done = subprocess.run(command, cwd=find_root(), capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def describe_machine() -> dict:
    "Return when, with which code and on which machine something is measured."
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    changed = command_output("git", "status", "--porcelain", "--untracked-files=no")
    return dict(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        commit=command_output("git", "rev-parse", "--short", "HEAD"),
        changed_files=len(changed.splitlines()),
        machine=cpu[1] if cpu else platform.machine(),
        cores=os.cpu_count(),
        memory_gib=round(int(memory[1]) / 2**20) if memory else None,
        load_before=round(os.getloadavg()[0], 2),
    )
