from tests.service_fixtures import artifacts, home, serve

__all__ = ["artifacts", "home", "serve"]
