"""Services that the demo and the tests run on this machine, without Docker, root or accounts."""
