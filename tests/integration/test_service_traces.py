"""The running worker sends one trace from the publisher's span to the webhook, and offers every metric of the dashboards."""

import gzip
import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika
import pytest
from integration.broker import amqp_channel
from integration.service import Service, message, service, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from local.rabbitmq import free_ports

__all__ = ["service"]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps the spans that are sent to it."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[str, str, str]] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                collector.take(self.path, ExportTraceServiceRequest.FromString(data))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def take(self, path: str, request: ExportTraceServiceRequest) -> None:
        assert path == "/v1/traces"
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.name] = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_job_is_one_trace_from_the_publisher_to_the_webhook(service: Service, collector: Collector) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{collector.server.server_port}"
    service.start_worker(
        OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="200", HTTP_ADDRESS=f"127.0.0.1:{port}"
    )
    with amqp_channel(service.rabbitmq.url) as channel:
        channel.queue_declare("image_generation", durable=True)
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        stamped = pika.BasicProperties(delivery_mode=2, headers=headers, timestamp=1_700_000_000)
        channel.basic_publish("", "image_generation", json.dumps(message(7)).encode(), stamped)
    service.wait([7])
    until(lambda: {"generation", "webhook"} <= collector.spans.keys())
    assert {"queue", "inputs", "stamp", "store"} <= collector.spans.keys()
    trace_id, span_id, parent_id = collector.spans["generation"]
    assert (trace_id, parent_id) == (TRACE, PARENT)
    assert {(trace, parent) for name, (trace, _, parent) in collector.spans.items() if name != "generation"} == {
        (TRACE, span_id)
    }
    (told,) = [call for call in service.backend.ledger if call.path.endswith("/complete")]
    assert told.headers["traceparent"] == f"00-{TRACE}-{span_id}-01"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        assert 'remarque_queue_wait_seconds_count{since="published"} 1.0' in page.read().decode()
