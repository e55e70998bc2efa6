"""What leaves the sidecar: metrics by scrape, spans and events by OTLP. Everything is made from snapshots."""
