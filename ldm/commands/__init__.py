"""The ldm command: one small module a verb. Hydra stops here."""
