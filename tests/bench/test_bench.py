"""The benchmark's arithmetic, and its load generator against servers that answer as they should or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandboxd.demo import envoy, envoy_config
from tests.bench import channel, load, matrix, neighbour, proxies, results, specification, store
from tests.bench.__main__ import PARTS
from tests.support import guests, redis_server

pytestmark = pytest.mark.long


def rounds(*rates: float) -> list[load.Load]:
    """Return rounds with these rates."""
    return [load.Load(rate, 100.0 / rate, 200.0 / rate, int(rate)) for rate in rates]


def test_the_ratio_is_taken_round_by_round() -> None:
    """A slow moment of the machine, in one round, moves neither the medians nor the ratio."""
    found = {name: rounds(1000, 1000, 1000) for name in proxies.SUBJECTS}
    found["ext_proc"] = rounds(900, 90, 900)
    found["ext_proc_noop"] = rounds(1000, 100, 1000)

    figures = proxies.summarise(found)

    assert figures["ext_proc_ratio"] == 0.9
    assert figures["ext_proc_rps"] == 900
    assert figures["ext_proc_rps_rounds"] == [900, 90, 900]
    assert {f"{name}_p99_us" for name in proxies.SUBJECTS} <= figures.keys()


def test_percentiles_are_medians_of_rounds_in_their_units() -> None:
    """A slow round does not show."""
    taken = [
        {
            way: dict.fromkeys(("p50", "p90", "p99", "p999"), base * scale)
            for way, base in (("spin_ns", 900), ("sleep_ns", 25_000))
        }
        for scale in (1, 50, 1)
    ]

    figures = channel.summarise("channel_rtt", taken)

    assert figures["channel_rtt_spin_ns"] == figures["channel_rtt_spin_ns_p999"] == 900
    assert figures["channel_rtt_sleep_us"] == figures["channel_rtt_sleep_us_p99"] == 25


def test_a_channel_that_nobody_gives_is_no_figure(tmp_path: Path) -> None:
    """Rather than a figure of something else."""
    binary = channel.build(tmp_path)
    with pytest.raises(load.LoadError, match="attach"):
        channel.run(binary, str(tmp_path / "none.sock"), "bench", "main")
    assert channel.run(binary, "--loop")["spin_ns"]["p50"] > 0


def test_every_figure_is_specified_and_every_row_is_measured() -> None:
    """The specification and the benchmark name the same figures."""
    rows = [row.figure for row in specification.read()]
    figures = [name for part in PARTS for name in part.FIGURES]
    assert sorted(rows) == sorted(figures)


def test_the_parts_give_what_they_say() -> None:
    """As far as it can be told without measuring."""
    found = {name: rounds(1000, 900) for name in proxies.SUBJECTS}
    assert {name for name in proxies.summarise(found) if not name.endswith("_rounds")} == set(proxies.FIGURES)
    turns = {name: [turn(100.0)] for name in ("alone", "polite", "noisy")}
    assert set(neighbour.summarise(turns)) == set(neighbour.FIGURES)


def test_a_store_that_is_not_there_is_no_figure_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than a failure of all the others, or a figure of memory."""

    def missing() -> tuple[list[str], dict[str, str]]:
        raise FileNotFoundError(redis_server.MISSING)

    monkeypatch.setattr(redis_server, "command", missing)
    said: list[str] = []
    assert store.measure(1, tmp_path, said.append) == {}
    assert said[-1] == f"NOT MEASURED: store_get_us: {redis_server.MISSING}"


@pytest.mark.timeout(60)
def test_reads_from_a_store_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a real server; no round trip through three processes is quicker than this."""
    monkeypatch.setattr(store, "REQUESTS", 5)
    (tmp_path / "probe").mkdir()
    with redis_server.redis_server(tmp_path / "probe"):  # skips where there is none
        figures = store.measure(1, tmp_path, print)
    assert figures["store_get_us"] > 10
    assert figures["store_get_rounds"] == [figures["store_get_us"]]


def turn(p99_us: float, *, body: bytes = b"right", status: int = 200) -> neighbour.Turn:
    """Return a turn of the neighbour."""
    return neighbour.Turn(load.Load(1.0, p99_us / 2, p99_us, 1), frozenset({(status, body, ())}))


def test_a_neighbours_ratio_is_taken_turn_by_turn() -> None:
    alone = [turn(100.0), turn(1000.0), turn(100.0)]
    figures = neighbour.summarise({"alone": alone, "polite": alone, "noisy": [turn(120.0), turn(1100.0), turn(900.0)]})
    assert figures["noisy_neighbour_p99_ratio"] == 1.2
    assert figures["polite_neighbour_p99_ratio"] == 1.0


@pytest.mark.parametrize("other", [turn(1.0, body=b"wrong"), turn(1.0, status=500)])
def test_other_answers_beside_noise_are_no_figure(other: neighbour.Turn) -> None:
    with pytest.raises(load.LoadError, match="different answers"):
        neighbour.summarise({"alone": [turn(1.0)], "polite": [turn(1.0)], "noisy": [other]})


def test_promises() -> None:
    rows = specification.parse("| `a` | < 2.5 | x |\n| `b` | >= 1 | y |\n| `c` | - | z |\n| d | e |\n")
    assert list(specification.misses(rows, {"a": 2.4, "b": 1, "c": 9e9})) == []
    assert list(specification.misses(rows, {"a": 2.5, "b": 0.9})) == [
        "a: 2.5, promised < 2.5",
        "b: 0.9, promised >= 1",
        "c: not measured",
    ]


@pytest.mark.parametrize("text", ["| `a` | about 2 | |", "| `a` | - | |\n| `a` | - | |"])
def test_a_broken_specification_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"promise|two rows"):
        specification.parse(text)


def test_a_combination_of_the_matrix() -> None:
    """Ratios are those of the default settings, and the best settings stand beside them."""
    rates = {"none": 2000, "v8": 1000, "shm": 800, "shm_spin_20us": 1200, "ext_proc": 100}
    found = matrix.summarise({name: [matrix.Turn(one, 50.0) for one in rounds(rate)] for name, rate in rates.items()})

    assert (found["shm_rps"], found["shm_vs_v8_rps_ratio"], found["shm_vs_ext_proc_rps_ratio"]) == (800, 0.8, 8.0)
    assert (found["shm_best"], found["shm_best_vs_v8_rps_ratio"]) == ("shm_spin_20us", 1.2)
    assert found["shm_cpu_us"] == 50
    lines = [*matrix.table({"headers_c1": found}, list(rates))]
    assert len({line.count("|") for line in lines}) == 1
    assert "| 800 / 0 / 50 |" in lines[-1]


def test_sections_of_the_file_of_figures_stay(tmp_path: Path) -> None:
    """The matrix is a run of its own, and what everything else writes does not undo it."""
    path = tmp_path / "deep" / "bench.json"
    results.write(path, {"a": 1, "old": 2})
    results.write_section(path, "matrix", {"b": 3})
    results.write(path, {"a": 4})

    assert json.loads(path.read_text()) == {"a": 4, "matrix": {"b": 3}}


@pytest.mark.long
@pytest.mark.envoy
@pytest.mark.timeout(300)
def test_a_small_matrix(tmp_path: Path) -> None:
    """Every workload goes through every subject, filtered, and its CPU time is counted."""
    plan = matrix.Plan(1, 0.3, (4,), (20,))
    found = matrix.measure(plan, tmp_path, lambda _text: None)

    assert list(found) == ["headers_c4", "body_16k_c4", "calls_20_c4"]
    for figures in found.values():
        for subject in plan.subjects:
            assert figures[f"{subject}_rps"] > 0
            assert figures[f"{subject}_cpu_us"] > 0
        assert figures["ext_proc_cpu_us"] > figures["none_cpu_us"]


@pytest.mark.envoy
@pytest.mark.timeout(300)
def test_the_generator_counts_answers_and_refuses_errors(tmp_path: Path) -> None:
    """A rate of error pages is no figure."""
    program = load.build(Path("build"))
    good, bad = envoy_config.direct_route("hello"), envoy_config.direct_route("oops")
    bad["direct_response"]["status"] = 503
    chunked = guests.HTTP_BODY_RESPONSE  # takes the content-length away
    filters = [envoy_config.wasm(chunked.name, chunked.path)]
    listeners = [
        envoy_config.listener("good", [], [good]),
        envoy_config.listener("bad", [], [bad]),
        envoy_config.listener("chunked", filters, [good]),
    ]
    with envoy.running(envoy_config.bootstrap(listeners, []), tmp_path) as proxy:
        found = load.run(program, proxy.ports["good"], 4, 0.3)
        assert found.requests > 10
        assert 0 < found.p50_us <= found.p99_us

        assert load.run(program, proxy.ports["chunked"], 4, 0.3).requests > 10

        with pytest.raises(load.LoadError, match="did not answer every request with 200"):
            load.run(program, proxy.ports["bad"], 4, 0.1)
    with pytest.raises(load.LoadError, match="connect"):
        load.run(program, proxy.ports["good"], 4, 0.1)
