"""Circuits while the model works: what the hot worker keeps of them, and what the control process makes of that."""
