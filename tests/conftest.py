"""Fixtures that several folders of tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Few examples while one works, many where every test runs: `make test` says --hypothesis-profile=many.
# A busy machine is slow and no test is wrong for that.
for profile, examples in (("few", 20), ("many", 150)):
    settings.register_profile(
        profile, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("few")

pytest_plugins = ["integration.broker", "integration.management", "integration.demo_models"]


@pytest.fixture(scope="module")
def figures(pytestconfig: pytest.Config) -> Iterator[dict[str, float]]:
    """PSNR in dB by name, filled in by a module's tests and printed when all are done."""
    reached: dict[str, float] = {}
    yield reached
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    width = max(map(len, reached), default=0)
    with capture.global_and_fixture_disabled():
        print("".join(f"\n{name:<{width}} {value:6.1f} dB" for name, value in reached.items()))
