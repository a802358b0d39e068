"""One run whole, as `scaling show` prints it: settings, stages and their costs, results, curves, origin. Reads only.

An imported run is shown as far as its table goes: it has columns and a source, no stages. Which run a name means is
decided here, because imports have runs but no stages; names of stages are `scaling.inspecting`'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling.inspecting import UnknownName, aligned, attempts_of, closure, find, run_stages, stage_folder
from scaling.layout import Layout
from scaling.progress import duration
from scaling.store import ImportRow, PlanRow, StageRow, Store
from scaling.tables import to_json_rows
from scaling.yaml_nodes import did_you_mean

CURVE_ROWS = 5  # newest rows of each learning curve
TRAINED = ("tokenizer", "generator")  # kinds of stage that have a learning curve
_ROW = ("plan", "run", "state", "finished")  # columns that are shown apart


def show(store: Store, root: Path, name: str, plan: str | None = None) -> dict[str, Any]:
    """All that is known of a run of a plan or an import; `root` holds `artifacts/`.

    Stages have seconds of all their attempts together, the most memory of any (bytes) and the newest one's device.
    Times are Unix seconds. Raises UnknownName with the candidates, StoreError for a plan that is not recorded.
    """
    source, table = _source(store, name, plan)
    rows = [row for row in to_json_rows(table) if str(row["run"]) == name]
    states = list(dict.fromkeys(str(row["state"]) for row in rows))
    about = {"plan": source.name, "run": name, "state": ", ".join(states), "imported": isinstance(source, ImportRow)}
    if isinstance(source, ImportRow):
        folder = Layout(root).import_folder(source.name, source.sha256)
        origin = {"file": source.file, "sha256": source.sha256, "imported": source.created, "folder": str(folder)}
        return about | _columns(rows, {}, ()) | {"stages": [], "curves": {}, "provenance": origin}
    run = next(run for run in store.runs(source.id) if run.name == name)
    stages = store.stages(source.id)
    keys = closure(stages, run_stages(run))
    curves = {stages[key].kind: store.metrics(key)[-CURVE_ROWS:] for key in keys if stages[key].kind in TRAINED}
    return {
        **about,
        **_columns(rows, run.columns, [name for one in run.evaluations for name in one]),
        "stages": [_stage(store, root, stages[key]) for key in keys],
        "curves": {kind: curve for kind, curve in curves.items() if curve},
        "provenance": _provenance(store, source, keys),
    }


def _source(store: Store, name: str, plan: str | None) -> tuple[PlanRow | ImportRow, Any]:
    """The plan or import that has the run, and its table. Raises UnknownName."""
    sources: list[PlanRow | ImportRow] = [*store.plans(), *store.imports()]
    tables = {one.name: store.load_runs(one.name) for one in sources if plan in (None, one.name)}
    if plan is not None and not tables:
        known = [one.name for one in sources]
        listed = ", ".join(known) or "none"
        raise UnknownName(f"{store.place}: no plan {plan!r}{did_you_mean(plan, known)}; it has {listed}")
    has = [one for one in sources if one.name in tables and name in set(tables[one.name]["run"].astype(str))]
    if len(has) > 1:
        raise UnknownName(f"run {name} is in {', '.join(one.name for one in has)}; choose with --plan")
    if not has:
        runs = [str(run) for table in tables.values() for run in table["run"].unique()]
        raise UnknownName(f"{store.place}: no run {name}{_hint(store, name, plan, runs)}; see: scaling runs")
    return has[0], tables[has[0].name]


def _hint(store: Store, name: str, plan: str | None, runs: Sequence[str]) -> str:
    close = did_you_mean(name, runs)
    if close:
        return close
    try:
        (stage,) = find(store, name, plan).stages
    except (UnknownName, ValueError):
        return ""
    return f", but a stage ({stage.kind} {stage.name}), which scaling logs shows"


def _columns(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """The rows' columns: what was asked for, what all evaluations have in common, and what each has of its own.

    `asked`: columns that say which evaluation it is; they come first.
    """
    names = [name for name in rows[0] if name not in _ROW and any(row[name] is not None for row in rows)]
    results = sorted((name for name in names if name not in settings), key=lambda name: name not in asked)
    shared = [name for name in results if all(row[name] == rows[0][name] for row in rows)]
    own = [name for name in results if name not in shared]
    ended = [row["finished"] for row in rows if row.get("finished") is not None]
    return {
        "settings": dict(settings),
        "results": {name: rows[0][name] for name in shared},
        "evaluations": [{"state": row["state"]} | {name: row[name] for name in own} for row in rows],
        "finished": max(ended) if len(ended) == len(rows) else None,
    }


def _stage(store: Store, root: Path, stage: StageRow) -> dict[str, Any]:
    rows = attempts_of(store, root, stage)
    fields = [attempt.fields for attempt in store.attempts(stage.fingerprint)]
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    memory = [one["peak_rss"] for one in fields if one["peak_rss"] is not None]
    devices = [one["device"] for one in fields if one["device"]]
    return {
        "kind": stage.kind,
        "name": stage.name,
        "state": stage.state,
        "message": stage.message,
        "fingerprint": stage.fingerprint,
        "attempts": len(rows),
        "seconds": sum(seconds) if seconds else None,
        "device": devices[-1] if devices else None,
        "peak_rss": max(memory, default=None),
        "flops": stage.flops,
        "params": stage.params,
        "folder": str(stage_folder(root, stage)),
    }


def _provenance(store: Store, plan: PlanRow, keys: Sequence[str]) -> dict[str, Any]:
    """Where the numbers come from: the plan, and the code and machines of the newest attempts at the stages."""
    newest = [rows[-1] for rows in map(store.attempts, keys) if rows]
    commits = [(one.fields["git_commit"], one.fields["dirty"]) for one in newest if one.fields["git_commit"]]
    versions = [one.fields["versions"] for one in newest if one.fields["versions"]]
    if not newest:
        commits, versions = [(plan.git_commit, plan.dirty)] if plan.git_commit else [], [plan.versions or {}]
    distinct: list[Mapping[str, str]] = []
    for one in versions:
        distinct += [one] if one and one not in distinct else []
    return {
        "plan_sha256": plan.sha256,
        "commits": [{"git_commit": commit, "dirty": dirty} for commit, dirty in dict.fromkeys(commits)],
        "versions": distinct,
        "hosts": list(dict.fromkeys(one.owner.host for one in newest)),
    }


def json_values(value: Any) -> Any:
    """`value` as strict JSON has it: None for what is not finite, as in the other commands' output."""
    if isinstance(value, Mapping):
        return {name: json_values(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------------------- text


def render_show(found: Mapping[str, Any]) -> str:
    """The run as text for people: a heading, then a part for each thing there is to say."""
    what = "import" if found["imported"] else "plan"
    lines = [f"{found['run']} of {what} {found['plan']}: {found['state']}"]
    if found["finished"] is not None:
        lines[0] += time.strftime(", finished %Y-%m-%d %H:%M", time.localtime(found["finished"]))
    parts = [("settings", _pairs(found["settings"])), ("stages", _stage_lines(found["stages"]))]
    parts.append(("columns" if found["imported"] else "results", _pairs(found["results"])))
    if any(len(one) > 1 for one in found["evaluations"]):
        parts.append(("evaluations", _records(found["evaluations"])))
    parts += [(f"learning curve, {kind} (newest)", _records(rows)) for kind, rows in found["curves"].items()]
    parts += [("origin", _origin(found)), ("folders", [f"  {one['folder']}" for one in found["stages"]])]
    for heading, body in parts:
        lines += [heading, *body] if body else []
    return "\n".join(lines)


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return aligned([[str(name), _text(value)] for name, value in values.items()])


def _records(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    return aligned(cells, right=range(len(names)))


def _stage_lines(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    if not stages:
        return []
    cells = [["kind", "name", "state", "fingerprint", "tries", "took", "device", "memory", "FLOPs", "params"]]
    for one in stages:
        took = duration(one["seconds"]) if one["seconds"] is not None else ""
        memory = f"{one['peak_rss'] / 2**20:,.0f} MiB" if one["peak_rss"] is not None else ""
        flops = f"{one['flops']:.2e}" if one["flops"] else ""
        params = f"{one['params']:,}" if one["params"] else ""
        row = [one["kind"], one["name"], one["state"], one["fingerprint"][:12], str(one["attempts"])]
        cells.append([*row, took, one["device"] or "", memory, flops, params])
    lines = aligned(cells, right=(4, 5, 7, 8, 9))
    return lines + [f"  {one['kind']} {one['state']}: {one['message']}" for one in stages if one["message"]]


def _origin(found: Mapping[str, Any]) -> list[str]:
    origin = found["provenance"]
    if found["imported"]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(origin["imported"]))
        return [f"  file {origin['file']}, SHA-256 {origin['sha256'][:12]}, imported {when}", f"  {origin['folder']}"]
    lines = [f"  plan {found['plan']}, SHA-256 {origin['plan_sha256'][:12]}"]
    for one in origin["commits"]:
        changed = ", with changes that were not committed" if one["dirty"] else ""
        lines.append(f"  git commit {one['git_commit']}{changed}")
    for versions in origin["versions"]:
        lines.append("  " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return lines + ([f"  on {', '.join(origin['hosts'])}"] if origin["hosts"] else [])


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
