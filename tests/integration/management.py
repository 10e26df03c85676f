"""RabbitMQ's management API and metrics on the tests' own broker."""

from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from local.rabbitmq import RabbitMQ, free_ports


@dataclass(frozen=True)
class Management:
    """``api_url`` has the credentials in it; ``metrics_url`` needs none."""

    api_url: str
    metrics_url: str


@pytest.fixture(scope="module")
def management(killable_rabbitmq: RabbitMQ) -> Management:
    """Both plugins, switched on in the running broker, on free ports of the loopback.

    Off first: a broker that another module killed comes up again with plugins that listen elsewhere.
    """
    api, metrics = free_ports(2)
    plugins = killable_rabbitmq.log.parent / "enabled_plugins"
    listen = 'application:load({0}), application:set_env({0}, tcp_config, [{{port,{1}}},{{ip,"127.0.0.1"}}])'
    ensure = f'rabbit_plugins:ensure("{plugins}").'
    plugins.write_text("[].\n")
    killable_rabbitmq.ctl("eval", ensure)
    plugins.write_text("[rabbitmq_management,rabbitmq_prometheus].\n")
    killable_rabbitmq.ctl(
        "eval",
        f"{listen.format('rabbitmq_management', api)}, {listen.format('rabbitmq_prometheus', metrics)}, {ensure}",
    )
    credentials = urlsplit(killable_rabbitmq.url).netloc.rpartition("@")[0]
    return Management(f"http://{credentials}@127.0.0.1:{api}", f"http://127.0.0.1:{metrics}")
