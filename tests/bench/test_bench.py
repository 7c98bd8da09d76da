"""The benchmark's arithmetic, and its load generator against servers that answer as they should or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.demo import envoy, envoy_config
from tests.bench import load, proxies


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


@pytest.mark.envoy
@pytest.mark.timeout(300)
def test_the_generator_counts_answers_and_refuses_errors(tmp_path: Path) -> None:
    """A rate of error pages is no figure."""
    program = load.build(Path("build"))
    good, bad = envoy_config.direct_route("hello"), envoy_config.direct_route("oops")
    bad["direct_response"]["status"] = 503
    listeners = [envoy_config.listener("good", [], [good]), envoy_config.listener("bad", [], [bad])]
    with envoy.running(envoy_config.bootstrap(listeners, []), tmp_path) as proxy:
        found = load.run(program, proxy.ports["good"], 4, 0.3)
        assert found.requests > 10
        assert 0 < found.p50_us <= found.p99_us

        with pytest.raises(load.LoadError, match="did not answer every request with 200"):
            load.run(program, proxy.ports["bad"], 4, 0.1)
    with pytest.raises(load.LoadError, match="connect"):
        load.run(program, proxy.ports["good"], 4, 0.1)
