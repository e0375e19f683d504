"""Runs some commands in turns and prints the median of the tokens a second that each reports.

python tests/peers/in_turns.py ROUNDS 'NAME=COMMAND' 'NAME=COMMAND' …

A command's figure is the last "N tokens/s" that it prints.
"""

import re
import statistics
import subprocess
import sys

rounds, commands = int(sys.argv[1]), dict(a.split("=", 1) for a in sys.argv[2:])
speeds: dict[str, list[float]] = {name: [] for name in commands}
for _ in range(rounds):
    for name, command in commands.items():
        run = subprocess.run(command, shell=True, capture_output=True, text=True)
        found = re.findall(r"([\d,]+) tokens/s", run.stdout)
        if run.returncode or not found:
            sys.exit(f"{name}: exit code {run.returncode}, no tokens/s\n{run.stderr[-2000:]}")
        speeds[name].append(float(found[-1].replace(",", "")))
        print(f"{name}: {speeds[name][-1]:,.0f}", flush=True)
for name, figures in speeds.items():
    low, middle, high = min(figures), statistics.median(figures), max(figures)
    print(f"{name}: median {middle:,.0f}, {low:,.0f} to {high:,.0f}")
