"""Parts a, b and c: plain FAISS, the peers and likewise in their processes, at one size, in turns."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common.machine import described
from common.processes import BENCHMARKS, Child, rss_bytes
from searching.candidates import candidates
from searching.plan import Plan
from searching.stages import Facts, Memory, Readings, Say, Seat, built, kept, rounds, start

FINALISTS = 3  # configurations of FAISS that take part in the rounds: the fastest while they were tuned
MEASURES = ("batch", "whole", "single")
WARM_ITEMS = 100_000  # at most, of ingestion into a collection that is being searched
QUIET_S = 10.0  # without a build: then none is to come
POLL_S = 0.5


def prepare(plan: Plan, *, filters: bool, say: Say) -> None:
    """Make the data and the truth, in a process of its own, whose memory goes with it."""
    say("data and true neighbours")
    arguments = [plan.json(), *(["filters"] if filters else [])]
    subprocess.run([sys.executable, "-m", "searching.prepare", *arguments], check=True, cwd=BENCHMARKS)


def build_faiss(plan: Plan, dim: int, wanted: list[str], say: Say) -> dict[str, Facts]:
    """Build and tune every configuration; return the facts of each by factory string."""
    found = {}
    for candidate in candidates(plan.n, dim):
        factory = candidate.factory
        if wanted and factory not in wanted:
            continue
        name = factory.replace(",", "_")
        say(f"FAISS {factory}: building")
        facts = kept(plan.folder / f"{name}.build.json", lambda f=factory: built(plan, "faiss_peer", f))  # type: ignore[misc]  # binds it now
        say(f"FAISS {factory}: tuning")
        facts["tuned"] = kept(plan.folder / f"{name}.tuned.json", lambda f=factory: _tuned(plan, "faiss_peer", f))  # type: ignore[misc]  # binds it now
        found[factory] = facts
    return found


def build_peer(plan: Plan, peer: str, python: Path, say: Say) -> Facts:
    """Build and tune a peer."""
    module = f"{peer}_peer"
    say(f"{peer}: building")
    facts = kept(plan.folder / f"{peer}.build.json", lambda: built(plan, module, python=python))
    say(f"{peer}: tuning")
    facts["tuned"] = kept(plan.folder / f"{peer}.tuned.json", lambda: _tuned(plan, module, python=python))
    return facts


def _tuned(plan: Plan, module: str, *arguments: str, **options: Path) -> Facts:
    with start(plan, module, *arguments, "search", **options) as child:
        return child.ask("tune", timeout=plan.patience)


def data_directory(plan: Plan) -> Path:
    """Return the store that holds the plan's data."""
    return plan.folder / "likewise"


def build_likewise(plan: Plan, say: Say) -> Facts:
    """Ingest, wait for the build, close; then what memory and time that took, and how long opening again takes."""
    facts = kept(plan.folder / "likewise.json", lambda: _ingested(plan, say))
    for name, evict in (("reopen_evicted", True), ("reopen", False)):
        say(f"likewise: {name}")
        with start(plan, "likewise_peer", str(data_directory(plan))) as child:
            if evict:
                child.ask("evict")
            facts[name] = child.ask("open")
            child.ask("close")
    return facts


def _ingested(plan: Plan, say: Say) -> Facts:
    facts: Facts = {"likewise": described()}
    folder = data_directory(plan)
    shutil.rmtree(folder, ignore_errors=True)
    child = start(plan, "likewise_peer", str(folder))
    with child, Memory(child.process.pid) as memory:
        child.ask("open", search=False)
        say(f"likewise: ingesting {plan.n} items")
        facts["ingest_cold"] = child.ask("ingest", count=plan.n, warm=False, timeout=plan.patience)
        facts["after_ingest"] = {"rss_bytes": rss_bytes(child.process.pid), **memory.facts()}
        facts["first_search"] = child.ask("bare_first", timeout=plan.patience)
        facts |= {"build_s": wait_built(child, plan, say), "state": child.ask("state")}
        facts |= {**child.hello, **child.ask("close", timeout=plan.patience), **memory.facts()}
    aside = folder.with_name("likewise-warm")
    shutil.rmtree(aside, ignore_errors=True)
    with start(plan, "likewise_peer", str(aside)) as child:
        child.ask("open", search=False)
        count = min(plan.n, WARM_ITEMS)
        say(f"likewise: ingesting {count} items while warm")
        facts["ingest_warm"] = child.ask("ingest", count=count, warm=True, timeout=plan.patience)
    shutil.rmtree(aside)
    return facts


def wait_built(child: Child, plan: Plan, say: Say) -> float:
    """Wait until the store has built nothing for a while; return the seconds until its last build was over."""
    started = last = time.monotonic()
    told = ""
    while time.monotonic() - last < QUIET_S:
        state = child.ask("state")
        if state["building"]:
            last = time.monotonic()
        if state["building"] and state["building"] != told:
            told = state["building"]
            say(f"likewise: {told}")
        if time.monotonic() - started > plan.patience:
            raise RuntimeError(f"the index was not ready after {plan.patience:.0f} s: {state}")
        time.sleep(POLL_S)
    return last - started


def contest(
    plan: Plan, faiss: dict[str, Facts], peers: dict[str, Facts], python: Path | None, say: Say, *, likewise: bool
) -> tuple[Readings, dict[str, Facts]]:
    """Start everything that has been built and let it take turns; return the readings and each one's recall."""
    with contextlib.ExitStack() as stack:
        seats: dict[str, Seat] = {}

        def seat(name: str, child: Child, prefix: str = "", setting: Facts | None = None) -> None:
            seats[name] = Seat(child, prefix)
            if setting is not None:
                seats[name].take("use", setting=setting)

        for factory in finalists(faiss):
            say(f"FAISS {factory}: opening")
            child = stack.enter_context(start(plan, "faiss_peer", factory, "search"))
            seat(f"FAISS {factory}", child, setting=faiss[factory]["tuned"]["setting"])
        for peer, facts in peers.items():
            if facts["tuned"]["setting"] is not None and python is not None:
                say(f"{peer}: opening")
                child = stack.enter_context(start(plan, f"{peer}_peer", "search", python=python))
                seat(peer, child, setting=facts["tuned"]["setting"])
        if likewise:
            say("likewise: opening")
            child = stack.enter_context(start(plan, "likewise_peer", str(data_directory(plan))))
            child.ask("open", timeout=plan.patience)
            seat("likewise", child, "bare_")
            seat("likewise, items", child, "items_")
            child.pause()
        recalls = {name: each.take("recall", timeout=plan.patience) for name, each in seats.items()}
        turns = {
            f"{name}: {measure}": lambda s=each, m=measure: s.take(m, seconds=plan.seconds)
            for measure in MEASURES
            for name, each in seats.items()
        }
        return rounds(plan, turns, say), recalls


def finalists(faiss: dict[str, Facts]) -> list[str]:
    """Return the factory strings that take part in the rounds, the fastest first."""
    able = [factory for factory, facts in faiss.items() if facts["tuned"]["setting"] is not None]
    return sorted(able, key=lambda factory: -float(faiss[factory]["tuned"]["queries_per_s"]))[:FINALISTS]
