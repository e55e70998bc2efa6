"""Circuits while they work: activity to sketches of exact integers, and from those to alarms with a stated rate."""
