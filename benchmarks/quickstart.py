"""Where the quickstart's time goes, and how close the scheduler comes to the best any scheduler could do.

Runs the shipped quickstart in a temporary folder (or reads one that was run: --folder DIR) and prints its total time,
the time in each kind of stage, and the makespan over the lower bound: the larger of work / workers and the longest
path through the graph, both from the stages' own measured seconds. The bound is the peer: nothing can beat it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from scaling.executors import cpu_count
from scaling.plan import load_plan
from scaling.stages import critical_path
from scaling.store import Store
from scaling.sweep import plan_graph

AIM = 1.15  # makespan over its lower bound
LIMIT_SECONDS = 360.0  # the quickstart's promise on two cores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder of a finished quickstart, instead of running one")
    folder = parser.parse_args().folder
    if folder is not None:
        return report(folder)
    with tempfile.TemporaryDirectory(prefix="scaling-quickstart-") as made:
        command = [sys.executable, "-m", "scaling.cli", "sweep", "quickstart"]
        subprocess.run(command, cwd=made, check=True, stderr=subprocess.DEVNULL)
        return report(Path(made))


def report(folder: Path) -> int:
    """Print the table and the JSON line; 1 where the aim is missed."""
    graph = plan_graph(load_plan("quickstart"))
    seconds: dict[str, float] = {}
    spans: list[tuple[float, float]] = []
    with Store.open(folder / "results.db", create=False, readonly=True) as store:
        for key in graph.stages:
            last = store.attempts(key)[-1]
            seconds[key] = float(last.fields["seconds"])
            spans.append((last.started, last.ended or last.started))
    workers = cpu_count()
    makespan = max(end for _, end in spans) - min(start for start, _ in spans)
    work = sum(seconds.values())
    longest = max(critical_path(graph, seconds).values())
    bound = max(work / workers, longest)
    kinds: dict[str, list[float]] = defaultdict(list)
    for key, stage in graph.stages.items():
        kinds[stage.kind].append(seconds[key])
    print(f"{'stage':<12}{'count':>6}{'seconds':>10}{'share':>8}{'longest':>9}")
    for kind, values in kinds.items():
        print(f"{kind:<12}{len(values):>6}{sum(values):>10.1f}{sum(values) / work:>8.0%}{max(values):>9.1f}")
    print(f"{'all':<12}{len(seconds):>6}{work:>10.1f}")
    print(f"makespan {makespan:.1f} s on {workers} workers; lower bound {bound:.1f} s")
    print(f"  work / workers {work / workers:.1f} s, longest path {longest:.1f} s")
    figure = makespan / bound
    holds = figure <= AIM and makespan <= LIMIT_SECONDS
    line = {"name": "quickstart makespan over lower bound", "figure": round(figure, 4), "unit": "ratio", "aim": AIM}
    print(json.dumps({**line, "seconds": round(makespan, 1), "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
