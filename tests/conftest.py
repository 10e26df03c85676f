"""Fixtures that several folders of tests share."""

pytest_plugins = ["integration.broker", "integration.management"]
