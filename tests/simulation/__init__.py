"""The real rooms of chat and live on a virtual clock, under seeded faults, judged by what their clients hold."""
