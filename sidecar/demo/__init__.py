"""The demo: a real model behind a real server, a sidecar beside it, varied traffic, and a table of what is heard."""
