"""What takes disk under artifacts/ and serves nothing: found, shown, and deleted so that a kill leaves nothing torn.

A thing that goes is first renamed into artifacts/.trash, in one transaction with what the database forgets of it; only
then is it deleted, and what a killed run left there the next one finds. What a plan needs is the database's to say: a
stage that it does not know is never touched. Nor is a stage that may be being written, an import, or anything that
really lies elsewhere behind a link.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from scaling import artifacts
from scaling.artifacts import CorruptArtifact, Layout
from scaling.files import read_json
from scaling.leases import ENDED
from scaling.rebuilding import live_driver
from scaling.schema import artifacts as files_table
from scaling.schema import attempts, edges, metrics, plan_stages, plans, runs, stages, summaries
from scaling.stage_folders import StageFolder, is_written, kind_folders, stage_folders
from scaling.store import StageRow, Store, StoreError

TORN_SECONDS = 3600.0  # a temporary file untouched for so long is nobody's: writing one takes seconds
DAY = 86400.0


@dataclass(frozen=True)
class Item:
    """One thing that can go, in one place or more. kind: plan | stage | attempt | checkpoints | leftover | trash."""

    kind: str
    what: str
    why: str
    bytes: int
    paths: tuple[str, ...]
    key: str = ""  # a stage's fingerprint or a plan's name
    attempt: int = 0


@dataclass
class Rubbish:
    """What can go, and, a line each, what was left for a reason. `freed`: bytes that are gone, 0 in a dry run."""

    items: list[Item] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    freed: int = 0

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"bytes": self.bytes}


def find_rubbish(
    store: Store, root: Path, *, older_than: float = 0.0, keep_plans: Sequence[str] = (), now: float | None = None
) -> Rubbish:
    """What can go from `root`/artifacts and has not changed for `older_than` days.

    Without `keep_plans` every plan in the database is kept; with it the plans not named go, and what only they need.
    Raises StoreError for a plan that is not there, Locked where a plan that is to go is being driven.
    """
    return _Finder(store, root, older_than, keep_plans, time.time() if now is None else now).find()


class _Finder:
    def __init__(self, store: Store, root: Path, days: float, keep_plans: Sequence[str], now: float) -> None:
        self.store, self.layout, self.now = store, Layout(root), now
        self.limit, self.keep_plans = now - days * DAY, keep_plans
        self.found = Rubbish()

    def find(self) -> Rubbish:
        rows = self.store.stages()
        folders, problems = stage_folders(self.layout)
        busy = {one.stage for one in self.store.running_attempts() if one.live}
        busy |= {key for key, folder in folders.items() if is_written(folder.path)}
        loose = self._loose(rows, folders, busy)
        unknown = [folder for key, folder in folders.items() if key not in rows]
        for key, folder in folders.items():
            if key in loose:
                self._add("stage", f"{folder.kind} {folder.name}", loose[key], [folder.path], key)
            elif key in rows and rows[key].state in ENDED and key not in busy:
                self._ended(key, folder)
        self._leftovers({folders[key].path for key in folders.keys() & busy})
        if unknown:
            size = sum(_measure(folder.path)[0] for folder in unknown)
            what = f"{len(unknown)} stages ({size_text(size)}) that this database does not know"
            self.found.kept.append(f"{what}: scaling db rebuild takes them in, or say with --db whose they are")
        if busy & folders.keys():
            self.found.kept.append(f"{len(busy & folders.keys())} stages being made now")
        going = {path for item in self.found.items for path in item.paths}
        self.found.kept += [line for line in problems if line.partition(": ")[0] not in going]
        return self.found

    def _loose(
        self, rows: Mapping[str, StageRow], folders: Mapping[str, StageFolder], busy: set[str]
    ) -> dict[str, str]:
        """The stages that no plan needs, each with why, of those that have a folder, are settled and old enough."""
        every = self.store.plans()
        unknown = [name for name in self.keep_plans if name not in {plan.name for plan in every}]
        if unknown:
            known = ", ".join(plan.name for plan in every) or "none"
            raise StoreError(f"{self.store.place}: no plan {unknown[0]} to keep; recorded are: {known}")
        unnamed = [plan for plan in every if self.keep_plans and plan.name not in self.keep_plans]
        dropped = [plan for plan in unnamed if plan.updated <= self.limit]
        young = ", ".join(plan.name for plan in unnamed if plan not in dropped)
        if young:
            self.found.kept.append(f"plan {young}: swept too lately")
        refusal = live_driver(self.store, plans=[plan.name for plan in dropped])
        if refusal is not None:
            raise refusal
        needed: set[str] = set(busy)
        wanted: dict[str, str] = {}
        for plan in every:
            if plan not in dropped:
                needed |= self.store.stages(plan.id).keys()
        for plan in dropped:
            wanted |= dict.fromkeys(self.store.stages(plan.id), f"only plan {plan.name} needs it, which is not kept")
            self._add("plan", plan.name, "not among the plans to keep", _plan_files(self.layout, plan.name), plan.name)
        needed |= {key for key in folders.keys() & rows.keys() if not self._old(folders[key].path)}
        open_ = [key for key in needed if key in rows]
        while open_:  # what is needed needs its parents
            parents = [parent for parent in rows[open_.pop()].parents if parent not in needed]
            needed.update(parents)
            open_ += [parent for parent in parents if parent in rows]
        loose = [key for key in folders if key in rows and key not in needed]
        return {key: wanted.get(key, "no plan needs it") for key in loose}

    def _ended(self, key: str, folder: StageFolder) -> None:
        """What a stage that has its result does without: checkpoints, and attempts that are not the result."""
        if not Layout.result(folder.path).exists() or artifacts.damage(folder.path):
            return
        try:
            result = int(read_json(Layout.result(folder.path))["attempt"])
            line = lineage(folder.path, result)
        except (CorruptArtifact, KeyError, TypeError, ValueError) as error:
            self.found.kept.append(f"{folder.path}: {error}")
            return
        name = f"{folder.kind} {folder.name}"
        for number in Layout.attempt_numbers(folder.path):
            checkpoints = Layout.checkpoints(folder.path, number)
            if number == result:
                self._add("checkpoints", name, "it has its result", [checkpoints], key, number)
            elif number in line:
                paths = [checkpoints, Layout.output(folder.path, number)]
                why = f"attempt {result} went on from it and is the result; its metrics and log stay"
                self._add("attempt", f"{name}, attempt {number}", why, paths, key, number)
            elif not _set_aside(Layout.attempt(folder.path, number)):
                path = Layout.attempt(folder.path, number)
                self._add(
                    "attempt", f"{name}, attempt {number}", f"attempt {result} is the result", [path], key, number
                )

    def _leftovers(self, busy: set[Path]) -> None:
        """What killed processes left: temporary files, folders that hold nothing else, and an earlier gc's trash."""
        base = self.layout.root / "artifacts"
        for path in kind_folders(self.layout):
            begun = Layout.config(path).exists() or Layout.attempts(path).exists() or path in busy
            if not begun and self._torn(path):
                self._add("leftover", str(path.relative_to(base)), "a stage that nothing was written of", [path])
        going = {Path(path) for item in self.found.items for path in item.paths}
        for folder, names, files in os.walk(base):
            here = Path(folder)
            if here in going or here in busy or here in (base / "imports", self.layout.trash):
                names.clear()
                continue
            for name in files:
                path = here / name
                if name.startswith(".tmp-") and self._torn(path):
                    self._add("leftover", str(path.relative_to(base)), "a write that was killed", [path])
        for path in sorted(self.layout.trash.iterdir()) if self.layout.trash.is_dir() else ():
            self._add("trash", path.name, "left by a gc that was killed", [path])

    def _add(self, kind: str, what: str, why: str, paths: Sequence[Path], key: str = "", attempt: int = 0) -> None:
        empty = kind in ("leftover", "trash")  # of those an empty folder goes too
        there = [path for path in paths if path.is_file() or (path.is_dir() and (empty or any(path.iterdir())))]
        linked = [path for path in there if not inside(self.layout, path)]
        if linked:
            self.found.kept.append(f"{linked[0]}: reached through a link, so it is not touched")
            return
        measured = [_measure(path) for path in there]
        young = kind in ("attempt", "checkpoints", "leftover") and any(when > self.limit for _, when in measured)
        if young or (not there and kind != "plan"):
            return
        size = sum(size for size, _ in measured)
        self.found.items.append(Item(kind, what, why, size, tuple(str(path) for path in there), key, attempt))

    def _torn(self, path: Path) -> bool:
        """Whether nobody can be writing a temporary file, or the first file of a folder, any more."""
        with contextlib.suppress(FileNotFoundError):
            return _measure(path)[1] < self.now - TORN_SECONDS
        return False

    def _old(self, path: Path) -> bool:
        return _measure(path)[1] <= self.limit


def lineage(stage_dir: Path, number: int) -> set[int]:
    """An attempt and those it went on from: their metrics are its own. Raises CorruptArtifact, KeyError, TypeError."""
    found = {number}
    while Layout.resumed(stage_dir, number).exists():
        number = int(read_json(Layout.resumed(stage_dir, number))["attempt"])
        if number in found:
            break
        found.add(number)
    return found


def _set_aside(attempt_dir: Path) -> bool:
    """Whether an attempt holds a diverged result that `scaling retry` set aside: a result, though not the stage's."""
    try:
        return bool(read_json(Layout.withdrawn(attempt_dir))["status"] == "diverged")
    except (CorruptArtifact, FileNotFoundError, KeyError, TypeError):
        return False


def inside(layout: Layout, path: Path) -> bool:
    """Whether a path really lies under artifacts/, with no link on the way to it."""
    base = layout.root / "artifacts"
    return path.resolve() == base.resolve() / path.relative_to(base)


def _measure(path: Path) -> tuple[int, float]:
    """(bytes, newest time of change) of a file or of all in a folder; links count as themselves."""
    own = path.lstat()
    size, newest = (0, own.st_mtime) if stat.S_ISDIR(own.st_mode) else (own.st_size, own.st_mtime)
    for folder, _, files in os.walk(path):
        for name in (".", *files):
            with contextlib.suppress(FileNotFoundError):  # gone while one looks
                about = os.lstat(os.path.join(folder, name))
                size += 0 if name == "." else about.st_size
                newest = max(newest, about.st_mtime)
    return size, newest


def _plan_files(layout: Layout, name: str) -> list[Path]:
    """The copies of a plan's text and their records."""
    found = []
    for text in layout.plan_texts():
        mark = Layout.plan_mark(text)
        try:
            mine = read_json(mark)["name"] == name
        except (OSError, CorruptArtifact, KeyError, TypeError):
            mine = False
        found += [text, mark] if mine else []
    return found


# -------------------------------------------------------------------------------------------- deleting


def delete_rubbish(store: Store, root: Path, found: Rubbish) -> None:
    """Delete what was found, one thing after the other; what came to be needed meanwhile stays and is named in `kept`.

    Raises StoreError, OSError; what is deleted by then is counted in `freed`.
    """
    layout = Layout(root)
    for item in list(found.items):
        place = Path(item.paths[0]) if item.kind == "trash" else layout.trash / uuid.uuid4().hex
        reason = "" if item.kind == "trash" else _give_up(store, layout, item, place)
        if reason:
            found.kept.append(f"{item.what}: {reason}")
            found.items.remove(item)
            continue
        shutil.rmtree(place, ignore_errors=True)
        found.freed += item.bytes
    if layout.trash.is_dir() and not any(layout.trash.iterdir()):
        layout.trash.rmdir()


def _give_up(store: Store, layout: Layout, item: Item, place: Path) -> str:
    """Rename an item's paths into `place` and forget it in the database, both or neither; why not, where it stays."""
    moved: list[tuple[Path, Path]] = []
    try:
        with store.transaction() as connection:
            reason = _still_needed(store, connection, layout, item)
            if reason:
                return reason
            _forget(connection, item)
            for number, path in enumerate(map(Path, item.paths)):
                target = place / f"{number}" / path.name  # too deep for a glob over stages to find it
                target.parent.mkdir(parents=True, exist_ok=True)
                moved.append((path, target))
                path.rename(target)
    except BaseException:
        for path, target in reversed(moved):
            if target.exists():
                target.rename(path)
            with contextlib.suppress(OSError):
                target.parent.rmdir()
                place.rmdir()
        raise
    return ""


def _still_needed(store: Store, connection: sa.Connection, layout: Layout, item: Item) -> str:
    """Why an item must stay after all, by what the database and the files say now; empty where it may go."""
    if any(not Path(path).exists() for path in item.paths):
        return "gone meanwhile"
    if item.kind == "plan":
        refusal = live_driver(store, plans=[item.key])
        return str(refusal) if refusal else ""
    if not item.key:
        return ""
    if any(one.live for one in store.running_attempts() if one.stage == item.key):
        return "being made now"
    row = connection.execute(sa.select(stages).where(stages.c.fingerprint == item.key)).one_or_none()
    if row is None or is_written(layout.stage(row.kind, row.name, item.key)):
        return "being made now"
    if item.kind != "stage":
        return "" if row.state in ENDED else "its result was taken back"
    asked = sa.select(plan_stages.c.plan).where(plan_stages.c.stage == item.key)
    return "a plan needs it now" if connection.execute(asked).first() else ""


def _forget(connection: sa.Connection, item: Item) -> None:
    """Take out of the database what goes with an item."""
    if item.kind == "plan":
        number = connection.execute(sa.select(plans.c.id).where(plans.c.name == item.key)).scalar_one()
        for table in (plan_stages, runs):
            connection.execute(sa.delete(table).where(table.c.plan == number))
        connection.execute(sa.delete(plans).where(plans.c.id == number))
    elif item.kind == "stage":
        for table in (metrics, summaries, files_table, attempts, plan_stages):
            connection.execute(sa.delete(table).where(table.c.stage == item.key))
        connection.execute(sa.delete(edges).where((edges.c.child == item.key) | (edges.c.parent == item.key)))
        connection.execute(sa.delete(stages).where(stages.c.fingerprint == item.key))
    elif item.kind == "attempt":
        mine = (attempts.c.stage == item.key) & (attempts.c.number == item.attempt)
        if Path(item.paths[0]).name.isdigit():  # the whole folder, and its log with it
            connection.execute(sa.update(attempts).where(mine).values(log_path=None))
        files = (files_table.c.stage == item.key) & (files_table.c.attempt == item.attempt)
        connection.execute(sa.delete(files_table).where(files))


# ----------------------------------------------------------------------------------------------- shown


def size_text(count: float) -> str:
    """Bytes as people say them: 12 B, 3.4 kB, 5.6 GB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} B"


def render_rubbish(found: Rubbish, *, deleted: bool) -> str:
    """What goes, why and how much it takes; the total; and what was left, with the reason."""
    return "\n".join(_lines(found, deleted))


def _lines(found: Rubbish, deleted: bool) -> Iterator[str]:
    if found.items:
        cells = [("what", "why", "bytes")]
        cells += [(f"{one.kind}  {one.what}", one.why, size_text(one.bytes)) for one in found.items]
        widths = [max(len(cell[column]) for cell in cells) for column in range(3)]
        for what, why, size in cells:
            yield f"{what.ljust(widths[0])}  {why.ljust(widths[1])}  {size.rjust(widths[2])}"
    for line in found.kept:
        yield f"left: {line}"
    if not found.items:
        yield "nothing to free"
    elif deleted:
        yield f"freed {size_text(found.freed)}"
    else:
        yield f"total {size_text(found.bytes)}; a dry run, nothing was deleted: scaling gc --yes deletes it"
