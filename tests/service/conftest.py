from tests.service_fixtures import artifacts, client, home, lines, serve

__all__ = ["artifacts", "client", "home", "lines", "serve"]
